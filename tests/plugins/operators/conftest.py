"""DAGs of one operator, run in this process against a store with a stub trainer's inputs."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from talaria.store.store import Store
from talaria_airflow.operators.accelerate_launch import AccelerateLaunchOperator

from tests.support import tiny_pipeline, working_folder

LAUNCH = Path(__file__).parents[2] / "launch"
STUB, QUICK = LAUNCH / "stub", LAUNCH / "quick_launcher"


@dataclass
class Runner:
    root: Path
    inputs: dict[str, Path]
    store: Store = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.root / "store")
        self.upstream = {stage: self._put(stage, folder) for stage, folder in self.inputs.items()}

    def _put(self, stage: str, source: Path) -> dict[str, Any]:
        def write(folder: Path) -> dict[str, Any]:
            shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
            return {}

        return self.store.run(stage, stage * 8, write, described_by={}).as_json()

    def train(self, *, stub: dict[str, Any] | None = None, quick: bool = True, **options: Any) -> Any:
        """Run a DAG with one training task; returns the task instance. `quick`: beneath the quick launcher, not accelerate's."""
        path = os.pathsep.join(map(str, [QUICK, STUB] if quick else [STUB]))
        env = {"PYTHONPATH": path, "STUB": json.dumps(stub or {}), **options.pop("env", {})}
        config = {"name": "stub", "train": {"num_processes": 1, "stop_grace": 60, "restarts": 0}}
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


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Outputs of `tokenize` and `base`: small, and such that a training could start."""
    outputs = tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("inputs")), tiny_pipeline.config())
    return {stage: outputs[stage].path for stage in ("tokenize", "base")}


@pytest.fixture
def runner(
    airflow_db: None, mlflow_file: str, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Runner:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_file)
    monkeypatch.setenv("TALARIA_MLFLOW_URL", "http://mlflow.example")
    monkeypatch.chdir(tmp_path)
    working_folder.fill(tmp_path)
    return Runner(tmp_path, inputs)
