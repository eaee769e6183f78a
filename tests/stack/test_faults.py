"""What a run loses when a service of the stack dies under it: at most the steps since its last checkpoint, and nothing twice."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest

from tests.stack import clock
from tests.stack.deployment import Deployment
from tests.stack.engine import REPOSITORY

STEPS, SAVE_EVERY = 40, 5
SLOW = {  # long enough to be disturbed in the middle
    "base.shape.hidden_size": 128,
    "base.shape.num_hidden_layers": 4,
    "train.global_batch": 32,
    "train.epochs": 10_000,
    "train.save_every": SAVE_EVERY,
}
MINUTE = 60
OUTAGES = 170
"""Seconds of training that two outages of a minute and the starts of two services fit in."""
JUMPS = 25
"""Seconds of training that two jumps of a clock fit in."""
HOUR = 3600
TABLE = REPOSITORY / "docs" / "reliability.md"
pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def pace(deployment: Deployment) -> float:
    """Seconds that a step takes on this machine when nothing goes wrong and nothing else runs: a training of OUTAGES / pace steps
    is not over sooner, however busy the machine was when this was measured."""
    undisturbed = Training(deployment, "undisturbed", 100)
    deployment.finished(undisturbed.run_id, progress=lambda: len(undisturbed.rows()))
    return min(row["seconds"] for row in undisturbed.rows()[STEPS // 2 :])


@dataclass
class Training:
    """A run of `sft` with a seed, and so a training, of its own."""

    deployment: Deployment
    name: str
    seed: int
    steps: int = STEPS
    run_id: str = ""

    def __post_init__(self) -> None:
        self.trigger()

    def trigger(self) -> None:
        self.run_id = self.deployment.train(self.name, **SLOW, **{"train.seed": self.seed, "train.max_steps": self.steps})

    def rows(self) -> list[dict[str, Any]]:
        return self.deployment.rows(self.seed)

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.deployment.rows(self.seed, "events.jsonl") if event["kind"] == kind]

    def in_the_middle(self) -> Training:
        self.deployment.until(lambda: len(self.rows()) > SAVE_EVERY, 280, lambda: self.deployment.report(self.run_id))
        return self

    def check_going_on(self, fault: str) -> None:
        """It has not noticed, and takes more steps now."""
        before = len(self.rows())
        assert before < self.steps, f"the training was over before it could be disturbed: {fault}"
        told = f"the training stands still: {fault}\n"
        self.deployment.until(lambda: len(self.rows()) > before, 60, lambda: told + self.deployment.report(self.run_id))
        assert self.events("resume") == [], fault

    def check_complete(self, *faults: str) -> None:
        """The run succeeded, every step is there once, in MLflow too, one version came of it, and the docs say so."""
        self.deployment.finished(self.run_id, progress=lambda: len(self.rows()))
        steps = list(range(1, self.steps + 1))
        assert [row["step"] for row in self.rows()] == steps
        (version,) = self.deployment.versions(self.name)
        run = self.deployment.mlflow("runs/get", run_id=version["run_id"])["run"]
        assert run["info"]["status"] == "FINISHED"
        history = self.deployment.mlflow("metrics/get-history", run_id=version["run_id"], metric_key="loss")
        assert sorted({int(point["step"]) for point in history["metrics"]}) == steps
        training = "resumes from its last checkpoint" if self.events("resume") else "continues"
        for fault in faults:
            assert f"| {fault} | {training} | nothing | one version |" in TABLE.read_text().splitlines()


def test_services_go_away_during_a_training_and_come_back(deployment: Deployment, pace: float) -> None:
    """One training through it all. redis and the api-server have their turn in the minute without MLflow, to save time."""
    engine = deployment.engine
    training = Training(deployment, "fault-services", 101, steps=math.ceil(OUTAGES / pace)).in_the_middle()
    faults = []

    def is_hit(service: str, seconds: float = 0, others: tuple[str, ...] = ()) -> None:
        fault = f"{service} killed and restarted" + (" after a minute" if seconds else "")
        engine.stop(service, signal.SIGKILL)
        back = time.monotonic() + seconds
        try:
            for other in others:
                is_hit(other)
            while time.monotonic() < back:
                training.check_going_on(fault)
                time.sleep(min(5, max(0, back - time.monotonic())))
        finally:
            engine.up(service)  # also for the tests that come next
        training.check_going_on(fault)
        faults.append(fault)

    is_hit("mlflow", MINUTE, others=("redis", "api-server"))
    is_hit("postgres", MINUTE)
    engine.up(*(name for name, service in engine.services.items() if service.process))
    training.check_complete(*faults)
    assert {task["try_number"] for task in deployment.airflow("viewer").tasks("sft", training.run_id)} <= {0, 1}


def test_the_clock_of_the_worker_jumps_during_training(deployment: Deployment, pace: float) -> None:
    """An hour ahead, then back to an hour behind; the other services and the store's file system keep the true time."""
    fault = "the worker's clock an hour ahead, then an hour behind"
    with clock.of_its_own(deployment.engine, "worker") as own:
        training = Training(deployment, "fault-clock", 107, steps=math.ceil(JUMPS / pace)).in_the_middle()
        for seconds in (HOUR, -HOUR):
            own.put(seconds)
            deployment.until(lambda: shown(training) == seconds, 60, lambda: f"{fault}: {training.rows()[-1]}")  # noqa: B023
            training.check_going_on(fault)
            step = training.rows()[-1]["step"]
            deployment.until(lambda: progress(training)[0] > step, 60, lambda: f"{fault}: {progress(training)}")  # noqa: B023
            assert "lost" not in progress(training)[1]
        training.check_complete(fault)
    rows = training.rows()
    assert all(0 < row["seconds"] < MINUTE and 0 <= row["data_wait_seconds"] < MINUTE for row in rows)
    assert 0 < deployment.rows(107, "system.jsonl")[-1]["cost/seconds"] < HOUR
    assert {task["try_number"] for task in deployment.airflow("viewer").tasks("sft", training.run_id)} <= {0, 1}


def shown(training: Training) -> int:
    """How far the trainer's clock is off, to the nearest hour."""
    return round((training.rows()[-1]["time"] - time.time()) / HOUR) * HOUR


def progress(training: Training) -> tuple[int, str]:
    """The step that the task's page shows, and all that it says there."""
    path = f"/api/v2/dags/sft/dagRuns/{training.run_id}/taskInstances/model.train/state-store"
    entries = training.deployment.airflow("viewer").call("GET", path)["task_state_store"]
    told = next((str(entry["value"]) for entry in entries if entry["key"] == "progress"), "step 0")
    return int(told.split()[1]), told


def test_the_worker_is_killed_during_training(deployment: Deployment) -> None:
    missed_soon = {"AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20"}  # of silence; five minutes else
    with deployment.engine.overriding("scheduler", missed_soon):
        training = Training(deployment, "fault-worker", 102).in_the_middle()
        deployment.engine.stop("worker", signal.SIGKILL)
        reached = training.rows()[-1]["step"]
        deployment.engine.up("worker")
        training.check_complete("the worker killed, with the training in it")
    (resume,) = training.events("resume")
    assert 0 < reached - resume["step"] < 2 * SAVE_EVERY, "a checkpoint that is being written when its worker dies does not count"


def test_the_disk_of_the_store_fills_up_during_training(deployment: Deployment) -> None:
    training = Training(deployment, "fault-disk", 106).in_the_middle()
    filler = deployment.engine.volume("talaria") / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert shutil.disk_usage(filler).free == 0
        assert deployment.ended(training.run_id) == "failed"
        assert "the disk is full" in deployment.report(training.run_id)
        assert deployment.versions("fault-disk") == []
    finally:
        filler.unlink()
    training.trigger()
    training.check_complete("the store's disk full, then space freed and the run triggered again")
    (resume,) = training.events("resume")
    assert resume["step"] >= SAVE_EVERY
