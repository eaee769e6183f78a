"""A real Airflow for tests: in this process with SQLite in a temporary folder, or as the services that `make up` starts.

Importing this module sets the environment, which has to happen before anything imports airflow.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _isolate() -> Path:
    """An empty AIRFLOW_HOME; nothing of a developer's own settings reaches the tests."""
    home = Path(tempfile.mkdtemp(prefix="talaria-airflow-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    for name in list(os.environ):
        if name.startswith(("AIRFLOW_", "TALARIA_", "MLFLOW_")) and not name.startswith("TALARIA_TEST_"):
            del os.environ[name]
    os.environ |= {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret for tests, long enough for every component: " + "0123456789" * 3,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return home


AIRFLOW_HOME = _isolate()


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """Airflow's database, empty."""
    from airflow.utils.db import initdb

    initdb()


@pytest.fixture
def dags(airflow_db: None) -> dict[str, Any]:
    """The repository's DAGs, parsed now, with the environment that the test has set."""
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(REPOSITORY / "dags")
    assert bag.import_errors == {}
    return dict(bag.dags)


@dataclass(frozen=True)
class Stack:
    home: Any
    ports: Any
    api: Any


@contextmanager
def running_stack(root: Path) -> Iterator[Stack]:
    """Airflow and MLflow as `make up` starts them, in a folder of their own, with the environment of now."""
    from rich.console import Console
    from talaria.devstack.airflow_client import AirflowApi
    from talaria.devstack.installation import Home
    from talaria.devstack.services import down, up

    home, console = Home(root), Console(quiet=True)
    try:
        ports = up(home, console)
        with AirflowApi(ports.airflow_url, "admin", home.password()) as api:
            yield Stack(home, ports, api)
    finally:
        down(home, console)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("talaria")) as stack:
        yield stack
