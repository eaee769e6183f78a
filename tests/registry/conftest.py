"""A small trained store and a real MLflow server, each made once a session."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from talaria.config.schema import Config
from talaria.store.store import Output

from tests.support import tiny_pipeline
from tests.support.mlflow_server import MlflowServer


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name their MLflow themselves."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "TALARIA_MLFLOW_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def server(mlflow_server: MlflowServer) -> MlflowServer:
    return mlflow_server


@pytest.fixture(scope="session")
def store(shared_store: Path) -> Path:
    return shared_store


@pytest.fixture(scope="session")
def outputs(store: Path) -> dict[str, Output]:
    return tiny_pipeline.trained(store)


@pytest.fixture
def folders(outputs: dict[str, Output]) -> dict[str, Path]:
    return {name: output.path for name, output in outputs.items()}


@pytest.fixture
def settings() -> Config:
    """A configuration whose registered model no other test has."""
    return tiny_pipeline.config(registry={"model": f"model-{uuid.uuid4().hex[:8]}"})


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory: pytest.TempPathFactory, store: Path) -> str:
    """MLflow without a server: a file of the store."""
    from talaria.tracking.mlflow_client import tracking_uri

    return tracking_uri(store)


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    """Both ways to have MLflow."""
    if request.param == "server":
        return request.getfixturevalue("server").uri
    return request.getfixturevalue("sqlite_uri")
