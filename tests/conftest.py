"""Loaded before any test: isolates Airflow (see support/airflow_env.py) and offers what several folders use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.airflow_env import airflow_db, dags, stack
from tests.support.mlflow_server import MlflowServer
from tests.support.object_storage import bucket, storage

__all__ = ["airflow_db", "bucket", "dags", "mlflow_server", "shared_store", "stack", "storage"]


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
