"""Loaded before any test: isolates Airflow (see support/airflow_env.py) and offers what several folders use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import transformers_here
from tests.support.airflow_env import airflow_db, dags, stack
from tests.support.mlflow_server import MlflowServer
from tests.support.object_storage import bucket, storage

__all__ = ["airflow_db", "bucket", "dags", "mlflow_server", "shared_store", "stack", "storage"]

hypothesis.settings.register_profile("talaria", deadline=None)  # a busy machine is slow, and that decides nothing
hypothesis.settings.load_profile("talaria")
transformers_here.use()

TOGETHER = {
    "registry": "registered",  # a trained store and an MLflow server
    "tracking": "registered",
    "publishing": "registered",
    "evaluation": "registered",
    "plugins/monitor": "monitor",  # an Airflow api-server
}
"""Folders whose tests one worker runs, since they share what is costly to start."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist 3.8 reads the groups in this hook too, before any conftest.py's
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests, and those that share costly fixtures, in one worker of pytest-xdist (--dist loadgroup)."""
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root)
        together = (group for folder, group in TOGETHER.items() if path.is_relative_to(folder))
        item.add_marker(pytest.mark.xdist_group(next(together, str(path))))


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that several folders' tests fill once (tiny_pipeline.trained); nobody removes what is in it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One MLflow server for all tests of registration and tracking; each names its own model or experiment."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
