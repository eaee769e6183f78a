"""A queue of many runs before one GPU slot: all are trained, one after another, in the order in which they were triggered."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.stack.deployment import SMALL, Deployment

RUNS = 50
MODEL = "load"
ON_THE_GPU = ["model.train", "model.evaluate", "registry.compare"]
pytestmark = [pytest.mark.load, pytest.mark.timeout(7200)]


def test_a_queue_of_runs_is_trained_in_order(deployment: Deployment) -> None:
    settings = [SMALL | {"name": MODEL, "train.max_steps": 1, "train.seed": 1000 + number} for number in range(RUNS)]
    runs = deployment.trigger_all("operator", "sft", [{"config": "tiny", "set": chosen} for chosen in settings])

    viewer = deployment.airflow("viewer")

    def left() -> list[str]:
        return viewer.unfinished_runs("sft")

    deployment.until(lambda: not left(), 600, lambda: str(left()), every=2, progress=lambda: len(left()))
    for run in runs:
        assert viewer.run("sft", run)["state"] == "success", deployment.report(run)
    check_order(runs, {run: viewer.tasks("sft", run) for run in runs})
    check_versions(deployment, runs)


def check_order(runs: list[str], tasks: dict[str, list[dict[str, Any]]]) -> None:
    """The GPU's slot was held by one task at a time; the runs came in order in each task, and a run's tasks in theirs.

    Registering needs no slot, so the next run trains meanwhile: train 1, evaluate 1, train 2, compare 1, evaluate 2, ...
    """
    held = [task | {"run": run} for run in runs for task in tasks[run] if task["pool"] == "gpu"]
    held.sort(key=lambda task: task["start_date"])  # ISO 8601, UTC
    assert all(before["end_date"] <= after["start_date"] for before, after in pairwise(held)), "two at a time on one slot"
    for task_id in ON_THE_GPU:
        assert [task["run"] for task in held if task["task_id"] == task_id] == runs, task_id
    for run in runs:
        assert [task["task_id"] for task in held if task["run"] == run] == ON_THE_GPU
    assert {task["try_number"] for task in held} == {1}


def check_versions(deployment: Deployment, runs: list[str]) -> None:
    """Version n of the model is the training of the n-th run and of no other."""
    versions = sorted(deployment.versions(MODEL), key=lambda version: int(version["version"]))
    assert [int(version["version"]) for version in versions] == list(range(1, RUNS + 1))
    assert len({version["run_id"] for version in versions}) == RUNS
    for run, version in zip(runs, versions, strict=True):
        found = deployment.mlflow("runs/get", run_id=version["run_id"])["run"]
        assert found["info"]["status"] == "FINISHED"
        assert {tag["key"]: tag["value"] for tag in found["data"]["tags"]}["talaria.run_id"] == run
