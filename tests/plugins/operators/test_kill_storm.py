"""Training in a real Airflow (LocalExecutor), ended in every way that Airflow and the kernel know, again and again.

After each, what ran is gone within the grace period, and the retry goes on from what was saved; the curve that it all ends
with is an undisturbed run's, number by number, and every kept model is registered once.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console
from talaria.config.schema import Config
from talaria.devstack.services import up
from talaria.process import reaper
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store
from talaria.train.train_state import TrainJob

from tests.support import process_trees, tiny_pipeline
from tests.support.airflow_env import Stack
from tests.train import ranks

GRACE = 60
SETTINGS = {"num_processes": 2, "save_every": 10, "keep_epochs": True, "stop_grace": GRACE}
EPOCHS = {"squall": 3, "storm": 40}
DAG_FILE = """
import json
from pathlib import Path
from datetime import timedelta
from airflow.sdk import DAG
from talaria_airflow.operators.accelerate_launch import AccelerateLaunchOperator
from talaria_airflow.operators.register import RegisterOperator
from talaria_airflow.operators.stage import StageOperator

told = json.loads(Path(__file__).with_suffix(".json").read_text())
inputs = told["inputs"]
ready = {name: inputs[name] for name in ("tokenize", "base")}
read = {**ready, "convert": inputs["convert"]}
for name, config in told["configs"].items():
    with DAG(name, schedule=None, default_args={"retries": 20, "retry_delay": timedelta(0)}):
        train = AccelerateLaunchOperator(task_id="train", config=config, inputs=ready, pool="gpu")
        evaluate = StageOperator(task_id="evaluate", stage="evaluate", config=config, inputs={**read, "train": train.output})
        RegisterOperator(task_id="register", config=config, inputs={**inputs, "train": train.output, "evaluate": evaluate.output})
"""


@dataclass
class Storm:
    """One run of a DAG, and the processes of its training task."""

    stack: Stack
    mark: str
    dag_id: str
    run_id: str = "first"
    seen: set[int] = field(default_factory=set)
    """Every process that trained so far."""

    def api(self, method: str, path: str, **body: Any) -> Any:
        return self.stack.api.call(method, f"/api/v2/dags/{self.dag_id}{path}", json=body or None)

    def trigger(self) -> None:
        process_trees.eventually(lambda: self.stack.api.has_dag(self.dag_id), within=120)
        self.stack.api.unpause(self.dag_id)
        self.stack.api.trigger(self.dag_id, self.run_id, {})

    def task(self, name: str = "train") -> dict[str, Any]:
        return next(task for task in self.stack.api.tasks(self.dag_id, self.run_id) if task["task_id"] == name)

    def training(self) -> dict[int, str]:
        """Processes that train now: pid -> reaper, launcher or rank."""
        told = {"reaper.py": "reaper", "accelerate.commands.launch": "launcher", "talaria.train": "rank"}
        found = {}
        for pid, argv in process_trees.marked(self.mark).items():
            roles = [role for text in argv[1:5] for ending, role in told.items() if text.endswith(ending)]
            if roles:
                found[pid] = roles[0]
        return found

    def one(self, role: str) -> int:
        """A process above or in the training that makes steps now: the newest of its role."""
        if role in ("launcher", "rank", "reaper"):
            return max(pid for pid, its in self.training().items() if its == role and pid not in self.seen)
        above = {"runner": 1, "supervisor": 2, "scheduler": 3}[role]
        pid = self.one("reaper")
        for _ in range(above):
            process = reaper.alive(pid)
            assert process is not None
            pid = process.parent
        return pid

    def steps_made(self) -> int:
        logs = list((self.stack.home.store / ".work").glob("train-*/metrics.jsonl"))
        return len(logs[0].read_text().splitlines()) if logs else 0

    def survives(self, end: Callable[[], None], draw: random.Random) -> None:
        """Let it train some steps, end it, and see that all that trained is gone in time."""
        goal = self.steps_made() + draw.randint(2, 6)
        process_trees.eventually(lambda: self.steps_made() >= goal and "rank" in self.fresh().values(), within=240)
        ended = set(self.fresh())
        end()
        deadline = 5 + GRACE + 5  # a supervisor asks every 5 s whether its task should still run
        process_trees.eventually(lambda: not ended & set(self.training()), within=deadline)
        self.seen |= ended

    def fresh(self) -> dict[int, str]:
        return {pid: role for pid, role in self.training().items() if pid not in self.seen}

    def finished(self) -> bool:
        return self.stack.api.run(self.dag_id, self.run_id)["state"] in ("success", "failed")

    def progress(self) -> str:
        """What the task's page shows in its tab Task State Store."""
        path = f"/dagRuns/{self.run_id}/taskInstances/train/state-store"
        return str({entry["key"]: entry["value"] for entry in self.api("GET", path)["task_state_store"]}.get("progress", ""))

    def log(self, attempt: int) -> str:
        return "\n".join(str(line.get("event")) for line in self.stack.api.log(self.dag_id, self.run_id, "train", attempt))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    """What the DAGs read."""
    return tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("inputs")), configuration("storm"))


@pytest.fixture(scope="module")
def airflow(inputs: dict[str, Output], shared_stack: Stack, stack_settings: dict[str, str]) -> Iterator[Stack]:
    """An Airflow that has found the DAGs; it has no others."""
    told = {
        "configs": {name: configuration(name).model_dump(mode="json") for name in EPOCHS},
        "inputs": {name: output.as_json() for name, output in inputs.items()},
    }
    [bundle] = json.loads(stack_settings["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"])
    folder = Path(bundle["kwargs"]["path"])
    (folder / "storm.json").write_text(json.dumps(told))
    (folder / "storm.py").write_text(DAG_FILE)
    yield shared_stack
    for path in folder.glob("storm.*"):
        path.unlink()


def configuration(name: str) -> Config:
    return tiny_pipeline.config(name=name, base={"shape": tiny_pipeline.SLOWER}, train={**SETTINGS, "epochs": EPOCHS[name]})


def curve(folder: Path) -> list[Any]:
    """Everything of a run that time does not decide."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in ("step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens")] for row in rows]


def undisturbed(name: str, root: Path, inputs: dict[str, Output]) -> Output:
    """The same training by ranks that are forked, which spares a launcher's start and theirs."""

    def train(config: Config, folders: Mapping[str, Path], folder: Path) -> dict[str, Any]:
        ranks.run(TrainJob(config, folders["tokenize"], folders["base"], folder), 2)
        return {}

    return run_stage("train", configuration(name), Store(root / "undisturbed"), inputs, function=train)


def ends_as_if_undisturbed(storm: Storm, trained_alone: Output) -> None:
    process_trees.eventually(storm.finished, within=600)
    states = {task["task_id"]: task["state"] for task in storm.stack.api.tasks(storm.dag_id, storm.run_id)}
    assert states == {"train": "success", "evaluate": "success", "register": "success"}
    trained = Output.from_json(storm.stack.api.xcom(storm.dag_id, storm.run_id, "train"))
    assert trained.key == trained_alone.key
    assert curve(trained.path) == curve(trained_alone.path)
    exports = sorted(path.name for path in (trained.path / "exports").iterdir())
    assert len(exports) == EPOCHS[storm.dag_id]
    told = storm.stack.api.log(storm.dag_id, storm.run_id, "register", storm.task("register")["try_number"])
    red = [line for line in told if line.get("level") in ("error", "critical")]  # what a library writes to stderr is, too
    assert told, "a log"
    assert red == []
    versions = storm.stack.api.xcom(storm.dag_id, storm.run_id, "register")["versions"]
    assert sorted(version["step"] for version in versions) == [int(name.removeprefix("step-")) for name in exports]
    told = MlflowClient(storm.stack.ports.mlflow_url).search_model_versions(f"name='{storm.dag_id}'")
    assert len(told) == len(exports)


@pytest.mark.timeout(900)
def test_the_task_is_killed_and_its_retry_goes_on(
    airflow: Stack, stack: Stack, inputs: dict[str, Output], tmp_path: Path
) -> None:
    storm = Storm(airflow, os.environ[process_trees.MARK], "squall")
    storm.trigger()
    # Killed as soon as it has made a few of its steps; nothing is asked of Airflow before, or a quick machine is done by then.
    storm.survives(lambda: os.kill(storm.one("runner"), signal.SIGKILL), random.Random(0))
    process_trees.eventually(lambda: "of" in storm.progress() or storm.finished(), within=240)  # seen without opening the log
    trained_alone = undisturbed(storm.dag_id, tmp_path, inputs)  # while Airflow goes on
    process_trees.eventually(storm.finished, within=600)
    assert storm.progress().endswith("done")
    assert "step 1/" in storm.log(1)
    # The launcher was killed with the task, so what its ranks left in memory serves the retry on the same machine.
    assert re.search(r"resume: from (the snapshot of step [1-9]|step-0000000[1-9])", storm.log(2))
    ends_as_if_undisturbed(storm, trained_alone)


@pytest.mark.storm
@pytest.mark.timeout(1800)
def test_a_training_that_is_ended_in_every_way_ends_as_an_undisturbed_one(
    airflow: Stack, stack: Stack, inputs: dict[str, Output], tmp_path: Path
) -> None:
    draw = random.Random(int(os.environ.get("STORM_SEED", "0")))
    storm = Storm(airflow, os.environ[process_trees.MARK], "storm")

    def kill(role: str) -> Callable[[], None]:
        return lambda: os.kill(storm.one(role), signal.SIGKILL)

    def mark_failed() -> None:
        storm.api("PATCH", f"/dagRuns/{storm.run_id}/taskInstances/train", new_state="failed")

    def clear() -> None:
        body = {"dry_run": False, "dag_run_id": storm.run_id, "task_ids": ["train"], "only_failed": False}
        storm.api("POST", "/clearTaskInstances", **body, reset_dag_runs=True, include_downstream=True)

    storm.trigger()
    for role in draw.sample(["rank", "launcher", "runner", "reaper"], 4):
        storm.survives(kill(role), draw)
    storm.survives(clear, draw)
    storm.survives(mark_failed, draw)
    process_trees.eventually(lambda: storm.task()["state"] == "failed")
    clear()
    storm.survives(kill("supervisor"), draw)
    storm.survives(kill("scheduler"), draw)
    up(airflow.home, Console(quiet=True))
    ends_as_if_undisturbed(storm, undisturbed(storm.dag_id, tmp_path, inputs))
