"""MLflow's database in a file, killed while it is made: nothing is bricked, and nothing that somebody logged is lost."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from talaria.tracking import mlflow_database
from talaria.tracking.mlflow_database import ensure_database

TABLES = ("runs", "registered_models", "alembic_version")


def execute(path: Path, *statements: str) -> list[Any]:
    database = sqlite3.connect(path)
    rows = [database.execute(statement).fetchall() for statement in statements]
    database.commit()
    database.close()
    return rows


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Stands for MLflow, which takes seconds: makes three tables, and refuses a file in which some are there already."""
    opened: list[Path] = []

    def open_(path: Path, artifacts: str) -> None:
        opened.append(path)
        there = {name for (name,) in execute(path, "SELECT name FROM sqlite_master")[0]}
        if there & set(TABLES) not in (set(), set(TABLES)):
            raise MlflowException("table _alembic_tmp_runs already exists")
        execute(path, *(f"CREATE TABLE IF NOT EXISTS {name} (id TEXT)" for name in TABLES))

    monkeypatch.setattr(mlflow_database, "_open", open_)
    return opened


def test_it_is_made_once(tmp_path: Path, mlflow: list[Path]) -> None:
    for _ in range(3):
        ensure_database(tmp_path / "new" / "mlflow.db", "file:///files")
    assert len(mlflow) == 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mlflow.db"]


def test_a_kill_while_it_is_made_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlflow: list[Path]) -> None:
    made = mlflow_database._open

    def killed(path: Path, artifacts: str) -> None:
        execute(path, "CREATE TABLE runs (id TEXT)")
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow_database, "_open", killed)
    with pytest.raises(KeyboardInterrupt):
        ensure_database(tmp_path / "mlflow.db", "file:///files")
    assert not (tmp_path / "mlflow.db").exists()
    monkeypatch.setattr(mlflow_database, "_open", made)
    ensure_database(tmp_path / "mlflow.db", "file:///files")
    assert execute(tmp_path / "mlflow.db", "SELECT count(*) FROM runs") == [[(0,)]]


@pytest.mark.parametrize("statements", [(), ("CREATE TABLE runs (id TEXT)", "CREATE TABLE _alembic_tmp_runs (id TEXT)")])
def test_one_that_was_left_half_made_is_made_again(tmp_path: Path, mlflow: list[Path], statements: tuple[str, ...]) -> None:
    path = tmp_path / "mlflow.db"
    execute(path, *statements)
    ensure_database(path, "file:///files")
    assert execute(path, *(f"SELECT count(*) FROM {name}" for name in TABLES)) == [[(0,)]] * 3


def test_one_that_holds_runs_is_left_as_it_is(tmp_path: Path, mlflow: list[Path]) -> None:
    path = tmp_path / "mlflow.db"
    execute(path, "CREATE TABLE runs (id TEXT)", "INSERT INTO runs VALUES ('precious')")
    before = path.read_bytes()
    ensure_database(path, "file:///files")
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path, mlflow: list[Path]) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("a text of somebody's" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        ensure_database(path, "file:///files")
    assert path.read_text().startswith("a text of somebody's")
