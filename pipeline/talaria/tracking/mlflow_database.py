"""MLflow's database in a file: made aside and renamed, so that no kill leaves one that MLflow can neither use nor mend.

    python -m talaria.tracking.mlflow_database FILE ARTIFACTS WORDS...

makes it and then does what `mlflow WORDS...` does, in the same process, as importing MLflow takes seconds. Its server would make
the database in place.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import uuid
from pathlib import Path

from talaria.common.locks import locked

_MADE = "talaria_made"
"""Table of a database whose other tables are all there; MLflow does not look at it."""


def ensure_database(path: Path, artifacts: str) -> None:
    """Make MLflow's tables, unless they are there. `artifacts`: where the experiment Default keeps its files.

    Two processes that did so at once would both fail, hence the lock beside the file. A file that an earlier version was killed
    in the middle of making, known by holding no run and no model, is set aside.
    """
    if _is_made(path):
        return
    with locked(path.with_name(f"{path.name}.lock")):
        if _is_made(path):
            return
        if path.exists() and _opens(path, artifacts):  # made by MLflow itself, or by a version of ours that left no mark
            return
        if path.exists() and _holds_something(path):
            return  # MLflow's own message says what is wrong with it
        _make(path, artifacts)


def _make(path: Path, artifacts: str) -> None:
    """Make it aside and move it into place. The caller holds the lock, so what lies aside already is a killed attempt's."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _open(aside, artifacts)
        with contextlib.closing(sqlite3.connect(aside)) as database, database:
            database.execute(f"CREATE TABLE {_MADE} (version INTEGER)")
        if path.exists():
            path.replace(path.with_name(f"{path.name}.half-made-{uuid.uuid4().hex[:8]}"))
            for suffix in ("-journal", "-wal", "-shm"):  # of the half-made one: SQLite would roll them into the new one
                path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
        os.replace(aside, path)
    finally:
        for left in path.parent.glob(f"{aside.name}*"):
            left.unlink(missing_ok=True)


def _open(path: Path, artifacts: str) -> None:
    """Have MLflow open the file, which makes its tables; the connections are closed again."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{path}", artifacts)  # type: ignore[no-untyped-call]
    store.engine.dispose()


def _opens(path: Path, artifacts: str) -> bool:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        _open(path, artifacts)
    except (MlflowException, SQLAlchemyError):
        return False
    return True


def _is_made(path: Path) -> bool:
    return path.exists() and _count(path, _MADE, "sqlite_master WHERE name = ?") == 1


def _holds_something(path: Path) -> bool:
    """Tell whether there is a run or a model to lose; a file that is no database counts as holding something."""
    counts = [_count(path, table, "sqlite_master WHERE name = ?") for table in ("runs", "registered_models")]
    if None in counts:
        return True
    present = [table for table, count in zip(("runs", "registered_models"), counts, strict=True) if count]
    return any(_count(path, None, table) != 0 for table in present)


def _count(path: Path, name: str | None, rows: str) -> int | None:
    """Count rows; None where the file is no database."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            query = f"SELECT count(*) FROM {rows}"  # noqa: S608 - our own words
            return int(database.execute(query, (name,) if name else ()).fetchone()[0])
    except sqlite3.Error:
        return None


if __name__ == "__main__":
    database, files, *words = sys.argv[1:]
    ensure_database(Path(database), files)
    from mlflow.cli import cli

    cli(words, prog_name="mlflow")
