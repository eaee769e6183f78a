"""Every DAG loads, is described, and costs little to parse."""

import json
import subprocess
import sys
from typing import Any

from tests.support.airflow_env import REPOSITORY

HEAVY = ("torch", "transformers", "accelerate", "polars", "datasets", "mlflow", "tokenizers", "fastokens", "pandas", "pyarrow")

PARSE = """
import json, sys, time
from airflow.dag_processing.dagbag import DagBag
start = time.monotonic()
bag = DagBag(sys.argv[1])
print(json.dumps({"seconds": time.monotonic() - start, "errors": bag.import_errors, "modules": sorted(sys.modules)}))
"""


def test_every_dag_is_described_and_may_be_tried_again(dags: dict[str, Any]) -> None:
    assert set(dags) == {"sft", "sweep", "rollback", "watch-champion"}
    for dag in dags.values():
        assert dag.doc_md
        assert "talaria" in dag.tags
        runs = 16 if "training" in dag.tags else 1
        assert dag.max_active_runs == runs, "a run that waits for a person blocks no other"
        assert not dag.catchup
        for task in dag.tasks:
            assert task.owner == "talaria", task.task_id
            assert task.retries >= 1, task.task_id
            assert task.retry_policy is not None, task.task_id


def test_training_takes_a_slot_of_the_gpu_pool(dags: dict[str, Any]) -> None:
    at_gpu = {task.task_id for task in dags["sft"].tasks if (task.pool, task.queue) == ("gpu", "gpu")}
    assert at_gpu == {"model.train", "model.evaluate", "registry.compare"}
    assert {task.pool for task in dags["sft"].tasks} == {"gpu", "default_pool"}


def test_every_dag_can_be_stored(dags: dict[str, Any]) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dags.values():
        serialized = DagSerialization.serialize_dag(dag)
        DagSerialization.deserialize_dag(serialized)
        assert len(json.dumps(serialized)) < 100_000, "the scheduler reads it again and again"


def test_parsing_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", PARSE, REPOSITORY / "dags"], capture_output=True, text=True, check=True)
    parsed = json.loads(done.stdout.splitlines()[-1])
    print(f"parsed in {parsed['seconds']:.2f} s")
    assert parsed["errors"] == {}
    assert [name for name in HEAVY if name in parsed["modules"]] == []


def test_the_watch_of_ones_own_dag_file_has_the_period_that_it_names(airflow_db: None) -> None:
    from airflow.serialization.serialized_objects import DagSerialization
    from talaria_airflow import watch_champion_dag

    assert "0 * * * *" in json.dumps(DagSerialization.serialize_dag(watch_champion_dag("watch-hourly", cron="0 * * * *")))
