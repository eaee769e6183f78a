"""The DAG `sweep`: its form, and what is refused before a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALARIA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


def test_its_form_asks_what_is_tried_and_takes_no_force(dags: dict[str, Any]) -> None:
    fields = set(dags["sweep"].params)
    assert {"sweep.values", "sweep.ranges", "sweep.trials", "sweep.seed", "sweep.references"} <= fields
    assert "force" not in fields, "a trial is never trained twice"
    assert not any(name.startswith("sweep.") for name in dags["sft"].params)


def test_trials_take_slots_of_the_gpu_pool_and_go_on_after_a_kill(dags: dict[str, Any]) -> None:
    tasks = {task.task_id: task for task in dags["sweep"].tasks}
    assert {name for name, task in tasks.items() if task.pool == "gpu"} == {
        *("trials.reference", "trials.compared", "model.evaluate", "registry.compare")
    }
    assert {tasks[name].retries for name in ("trials.reference", "trials.compared")} == {5}


def test_a_sweep_that_cannot_be_run_is_refused_at_once(dags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    run = dags["sweep"].test(run_conf={"config": "tiny", "sweep.values": {"base.seed": [1, 2]}})
    assert run.state == "failed"
    assert run.get_task_instance("configure").try_number == 1
    assert "base.seed is no setting of train that changes the result" in capsys.readouterr().out
