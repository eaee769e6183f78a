from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from talaria.tracking.tag_record import RECORD

from tests.plugins.monitor.server import Airflow, ApiServer, environment, prepare
from tests.support import synthetic_runs as synthetic
from tests.support.mlflow_server import MlflowServer


@pytest.fixture(scope="session")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """It starts while Airflow does; who asks it waits for it."""
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.begin_start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def registered(mlflow: MlflowServer) -> str:
    """Id of an MLflow run with two model versions: one that the gate let through, one that it refused."""
    from mlflow import MlflowClient

    mlflow.start()
    client = MlflowClient(mlflow.uri)
    experiment = client.create_experiment("talaria")
    run = client.create_run(experiment, run_name="qwen3-4b-base")
    client.create_registered_model("qwen3-4b-base")
    for step, verdict in ((100, "promoted"), (200, "refused")):
        version = client.create_model_version("qwen3-4b-base", f"s3://nowhere/{step}", run.info.run_id)
        client.set_model_version_tag("qwen3-4b-base", version.version, "talaria.gate", verdict)
        client.set_model_version_tag(
            "qwen3-4b-base", version.version, "talaria.gate.reason", f"Held-out loss after {step} steps."
        )
    client.set_model_version_tag("qwen3-4b-base", "2", RECORD, json.dumps({"key.evaluate": synthetic.key(9)}))
    client.set_registered_model_alias("qwen3-4b-base", "champion", "1")
    return str(run.info.run_id)


@pytest.fixture(scope="session")
def airflow(tmp_path_factory: pytest.TempPathFactory, mlflow: MlflowServer) -> Iterator[Airflow]:
    home, store = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("store")
    env = environment(home, store, mlflow.uri)
    dag_run = prepare(home, env)
    server = ApiServer(home, env)
    try:
        server.wait()
        yield Airflow(server.url, store, dag_run)
    finally:
        server.stop()


@pytest.fixture
def store(airflow: Airflow) -> Iterator[Path]:
    """The api-server's store, emptied after the test."""
    yield airflow.store
    for folder in airflow.store.iterdir():
        shutil.rmtree(folder)


@pytest.fixture
def grow() -> Callable[[Path, int, int], None]:
    """Append steps to a training that runs now."""

    def append(folder: Path, first: int, last: int) -> None:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(synthetic.lines(synthetic.rows(first, last, total=400)))

    return append
