"""DAGs of one operator, run in this process against a store with a stub trainer's inputs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from talaria.store.store import Store
from talaria_airflow.operators.accelerate_launch import AccelerateLaunchOperator

from tests.support import working_folder

STUB = Path(__file__).parents[2] / "launch" / "stub"


@dataclass
class Runner:
    root: Path
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.root / "store")
        self.upstream = {name: self._put(name, file) for name, file in (("tokenize", "state.json"), ("base", "config.json"))}

    def _put(self, stage: str, file: str) -> dict[str, Any]:
        def write(folder: Path) -> dict[str, Any]:
            (folder / file).write_text("{}")
            return {}

        return self.store.run(stage, stage * 8, write, described_by={}).as_json()

    def train(self, *, stub: dict[str, Any] | None = None, **options: Any) -> Any:
        """Run a DAG with one training task; returns the task instance."""
        env = {"PYTHONPATH": str(STUB), "STUB": json.dumps(stub or {}), **options.pop("env", {})}
        config = {"name": "stub", "train": {"num_processes": 1, "stop_grace": 60}}
        defaults = {"task_id": "task", "config": config, "inputs": self.upstream, "store": str(self.store.root), "env": env}
        return self.run(lambda: AccelerateLaunchOperator(**{**defaults, **options}))

    def run(self, make: Any) -> Any:
        with DAG("operators", schedule=None) as dag:
            task: BaseOperator = make()
        known(dag)
        return dag.test().get_task_instance(task.task_id)


def known(dag: DAG) -> None:
    """Write the DAG to the database, as the DAG processor does with those that it finds in files."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    bag = DagBag("/dev/null", bundle_name="dags-folder")
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "dags-folder", None)


@pytest.fixture(scope="session")
def mlflow_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all: MLflow takes seconds to make its tables."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowClient(uri).search_experiments()
    return uri


@pytest.fixture
def runner(airflow_db: None, mlflow_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    monkeypatch.setenv("TALARIA_MLFLOW_URL", "http://mlflow.example")
    monkeypatch.chdir(tmp_path)
    working_folder.fill(tmp_path)
    return Runner(tmp_path)
