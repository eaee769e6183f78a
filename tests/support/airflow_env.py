"""A real Airflow for tests: in this process with SQLite in a temporary folder, or as the services that `make up` starts.

Importing this module sets the environment, which has to happen before anything imports airflow.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import process_trees, working_folder
from tests.support.memory_disk import use_memory

REPOSITORY = Path(__file__).resolve().parents[2]


def _isolate() -> Path:
    """An empty AIRFLOW_HOME; nothing of a developer's own settings reaches the tests."""
    use_memory()
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
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",  # a server that a test has stopped does not come back sooner for waiting
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "OMP_NUM_THREADS": "1",  # several tests run at a time, and threads that wait for each other crawl on a busy machine
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
    working_folder.fill(root)  # in which services and tasks run
    try:
        ports = up(home, console)
        with AirflowApi(ports.airflow_url, "admin", home.password()) as api:
            yield Stack(home, ports, api)
    finally:
        down(home, console)


@pytest.fixture(scope="session")
def stack_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of the shared stack: it looks every second or two for new DAG files of tests, and for tasks that died."""
    kwargs = {"path": str(tmp_path_factory.mktemp("dags")), "refresh_interval": 1}
    bundle = {"name": "tests", "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle", "kwargs": kwargs}
    return {
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([bundle]),
        "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "1",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
        process_trees.MARK: process_trees.new_mark(),
    }


@pytest.fixture(scope="session")
def shared_stack(stack_settings: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with ExitStack() as services:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stack_settings.items():
                patch.setenv(name, value)
            stack = services.enter_context(running_stack(tmp_path_factory.mktemp("talaria")))
        yield stack


@pytest.fixture
def stack(shared_stack: Stack, stack_settings: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Stack:
    """One for all who need no other settings; the environment has them, for tests that start a service again."""
    for name, value in stack_settings.items():
        monkeypatch.setenv(name, value)
    return shared_stack
