"""What a run loses when a service of the stack dies under it: at most the steps since its last checkpoint, and nothing twice."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from typing import Any

import pytest

from tests.stack.deployment import Deployment
from tests.stack.engine import REPOSITORY

STEPS, SAVE_EVERY = 20, 5
SLOW = {  # long enough to be disturbed in the middle
    "base.shape.hidden_size": 64,
    "base.shape.num_hidden_layers": 2,
    "train.global_batch": 16,
    "train.max_steps": STEPS,
    "train.save_every": SAVE_EVERY,
}
TABLE = REPOSITORY / "docs" / "reliability.md"
pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


def begin(deployment: Deployment, name: str, seed: int) -> str:
    """A run in the middle of its training."""
    run_id = deployment.train(name, **SLOW, **{"train.seed": seed})
    deployment.until(lambda: len(deployment.steps(seed)) > SAVE_EVERY, 280, lambda: deployment.report(run_id))
    return run_id


def events(deployment: Deployment, seed: int, kind: str) -> list[dict[str, Any]]:
    lines = (deployment.training(seed) / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def check_complete(deployment: Deployment, run_id: str, name: str, seed: int, fault: str) -> None:
    """The run succeeded, every step is there once, in the folder as in MLflow, one version came of it, and the docs say so."""
    deployment.finished(run_id, timeout=400)
    assert deployment.steps(seed) == list(range(1, STEPS + 1))
    versions = deployment.versions(name)
    assert len(versions) == 1
    run = deployment.mlflow("runs/get", run_id=versions[0]["run_id"])["run"]
    assert run["info"]["status"] == "FINISHED"
    history = deployment.mlflow("metrics/get-history", run_id=run["info"]["run_id"], metric_key="loss")["metrics"]
    assert sorted({int(point["step"]) for point in history}) == list(range(1, STEPS + 1))
    training = "goes on from its last checkpoint" if events(deployment, seed, "resume") else "goes on unaware"
    assert f"| {fault} | {training} | nothing | one version |" in TABLE.read_text().splitlines()


def test_mlflow_is_down_during_training(deployment: Deployment) -> None:
    run_id = begin(deployment, "fault-mlflow", 101)
    deployment.engine.stop("mlflow", signal.SIGKILL)
    before = len(deployment.steps(101))
    deployment.until(lambda: len(deployment.steps(101)) > before + 3, 120, lambda: deployment.report(run_id))
    deployment.engine.up("mlflow")
    check_complete(deployment, run_id, "fault-mlflow", 101, "MLflow killed, back after training had gone on")
    assert events(deployment, 101, "resume") == [], "training has not noticed"


def test_the_worker_is_killed_during_training(deployment: Deployment) -> None:
    run_id = begin(deployment, "fault-worker", 102)
    deployment.engine.stop("worker", signal.SIGKILL)
    reached = deployment.steps(102)[-1]
    deployment.engine.up("worker")
    check_complete(deployment, run_id, "fault-worker", 102, "the worker killed, with the training in it")
    (resume,) = events(deployment, 102, "resume")
    assert 0 < reached - resume["step"] < 2 * SAVE_EVERY, "a checkpoint that is being written when its worker dies does not count"


def test_the_disk_of_the_store_fills_up_during_training(deployment: Deployment) -> None:
    run_id = begin(deployment, "fault-disk", 106)
    filler = deployment.engine.volume("talaria") / "filler"
    try:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert shutil.disk_usage(filler).free == 0
        assert deployment.ended(run_id) == "failed"
        assert "the disk is full" in deployment.report(run_id)
        assert deployment.versions("fault-disk") == []
    finally:
        filler.unlink()
    again = deployment.train("fault-disk", **SLOW, **{"train.seed": 106})
    check_complete(deployment, again, "fault-disk", 106, "the store's disk full, then room made and the run triggered again")
    (resume,) = events(deployment, 106, "resume")
    assert resume["step"] >= SAVE_EVERY


@pytest.mark.parametrize(("service", "seed"), [("redis", 103), ("postgres", 104), ("api-server", 105)])
def test_a_service_is_killed_during_training_and_comes_back(deployment: Deployment, service: str, seed: int) -> None:
    run_id = begin(deployment, f"fault-{service}", seed)
    deployment.engine.stop(service, signal.SIGKILL)
    deployment.engine.up(service)
    check_complete(deployment, run_id, f"fault-{service}", seed, f"{service} killed, and back")
    deployment.engine.up(*(name for name, found in deployment.engine.services.items() if found.process))
