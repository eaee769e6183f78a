"""Loaded before any test: isolates Airflow (see support/airflow_env.py) and offers what several folders use."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from talaria.common.locks import locked

from tests.support import transformers_here
from tests.support.airflow_env import airflow_db, dags, shared_stack, stack, stack_settings
from tests.support.browser import browser
from tests.support.mlflow_server import MlflowServer
from tests.support.object_storage import bucket, storage

__all__ = [
    "airflow_db",
    "browser",
    "bucket",
    "dags",
    "mlflow_server",
    "shared_stack",
    "shared_store",
    "stack",
    "stack_settings",
    "storage",
]

hypothesis.settings.register_profile("talaria", deadline=None)  # a busy machine is slow, and that decides nothing
hypothesis.settings.load_profile("talaria")
transformers_here.use()
gc.set_threshold(100_000)  # what torch, MLflow and Airflow keep, a million objects, is searched a hundred times less often

TOGETHER = {
    "registry": "registered",  # a trained store and an MLflow server
    "tracking": "registered",
    "publishing": "registered",
    "evaluation": "registered",
    "plugins/monitor": "monitor",  # an Airflow api-server
    "plugins/operators/test_kill_storm.py": "stack",  # the services of `make up`; the next folder's tests end with stopping them
    "plugins/test_airflow_pages.py": "stack",
    "devstack": "stack",
}
"""Folders whose tests one worker runs, in this order, since they share what is costly to start."""
FIRST = (
    "registered",
    "stack",
    "monitor",
    "dags/test_sft.py",
    "launch/test_training.py",
    "launch/test_launch.py",
    "cli/test_run_mixture.py",
    "train/test_resume.py",
    "cli/test_run.py",
    "plugins/operators/test_operators.py",
    "data/test_interrupted.py",
)
"""Groups that take longest, in this order: what begins late and takes long would leave the other workers idle at the end."""


@pytest.hookimpl(tryfirst=True)  # pytest-xdist 3.8 reads the groups in this hook too, before any conftest.py's
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests, and those that share costly fixtures, in one worker of pytest-xdist (--dist loadgroup)."""
    items.sort(key=_order)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _order(item: pytest.Item) -> tuple[int, int]:
    group, folder = _group(item), _shared_folder(item)
    return FIRST.index(group) if group in FIRST else len(FIRST), list(TOGETHER).index(folder) if folder else 0


def _group(item: pytest.Item) -> str:
    folder = _shared_folder(item)
    return TOGETHER[folder] if folder else str(_path(item))


def _shared_folder(item: pytest.Item) -> str | None:
    return next((folder for folder in TOGETHER if _path(item).is_relative_to(folder)), None)


def _path(item: pytest.Item) -> Path:
    return item.path.relative_to(Path(__file__).parent)


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that several folders' tests fill once (tiny_pipeline.trained); nobody removes what is in it.

    Beneath pytest-xdist, the first worker that wants it trains, and the others copy what it has made.
    """
    from tests.support import tiny_pipeline

    store = tmp_path_factory.mktemp("store")
    if "PYTEST_XDIST_WORKER" in os.environ:
        first = tmp_path_factory.getbasetemp().parent / "trained"
        with locked(first.with_suffix(".lock")):
            tiny_pipeline.trained(first)
        shutil.copytree(first, store, dirs_exist_ok=True)
    return store


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One MLflow server for all tests of registration and tracking; each names its own model or experiment."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    yield server
    server.stop()
