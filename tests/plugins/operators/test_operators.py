"""The operators in this process (dag.test): what they return, raise, log, show and keep to themselves."""

from __future__ import annotations

import contextlib
import json
import socket
from datetime import timedelta
from typing import Any

import pytest
from airflow.models.asset import AssetEvent
from airflow.models.renderedtifields import RenderedTaskInstanceFields
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.xcom import XComModel
from airflow.sdk import Asset
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk._shared.secrets_masker import redact
from airflow.utils.session import create_session
from sqlalchemy import select
from talaria.runs.summary import progress_line
from talaria_airflow.operators.stage import StageOperator


def xcoms(ti: Any) -> dict[str, Any]:
    with create_session() as session:
        found = session.execute(select(XComModel.key, XComModel.value).where(XComModel.run_id == ti.run_id))
        return dict(found.all())


def test_training_returns_the_stores_output_and_tells_its_way(runner, capsys: pytest.CaptureFixture[str]) -> None:
    asset = Asset("operators-model")
    ti = runner.train(outlets=[asset], quick=False)
    assert ti.state == "success"
    told = xcoms(ti)
    output = told["return_value"]
    assert output["facts"]["steps"] == 3
    assert output["path"] == str(runner.store.place("train", output["key"]))
    log = capsys.readouterr().out
    assert "step 2 loss 0.500" in log
    assert "\r" not in log
    assert told["_link_MlflowRunLink"].startswith("http://mlflow.example/#/experiments/")
    assert told["_link_MlflowRunLink"].endswith("?workflowType=machine_learning")
    assert told["_link_TrainingPageLink"].endswith(
        f"/talaria/?dag_id=operators&run_id={ti.run_id.replace(':', '%3A').replace('+', '%2B')}"
    )
    with create_session() as session:
        progress = session.scalar(select(TaskStateStoreModel.value).where(TaskStateStoreModel.run_id == ti.run_id))
        event = session.scalar(select(AssetEvent).where(AssetEvent.source_run_id == ti.run_id))
        assert event.extra["key"] == output["key"]
    assert json.loads(progress) == "step 3 of 3, loss 0.3333, done"

    again = runner.train()
    assert again.state == "success"
    assert xcoms(again)["return_value"] == {**output, "reused": True}
    assert "train: reused" in capsys.readouterr().out


def test_a_training_is_counted_through_airflows_metrics(runner, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.observability import stats
    from airflow.sdk.observability.metrics import stats_utils

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        for name, value in {"ON": "True", "HOST": "127.0.0.1", "PORT": str(receiver.getsockname()[1])}.items():
            monkeypatch.setenv(f"AIRFLOW__METRICS__STATSD_{name}", value)
        stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
        try:
            assert runner.train().state == "success"
        finally:
            stats.initialize(factory=NoStatsLogger, export_legacy_names=False)
        receiver.setblocking(False)
        told: list[str] = []
        with contextlib.suppress(BlockingIOError):
            while True:
                told += receiver.recv(65536).decode().splitlines()
    counted = [line.removeprefix("airflow.talaria.training.") for line in told if line.startswith("airflow.talaria.training.")]
    assert sum(int(line[6:-2]) for line in counted if line.startswith("steps:")) == 3
    assert "step:3.0|g" in counted
    assert any(line.startswith("loss:0.3333") for line in counted)


def test_what_the_user_has_to_change_is_not_tried_again(runner, capsys: pytest.CaptureFixture[str]) -> None:
    ti = runner.train(stub={"at": {2: "user"}}, retries=3)
    assert ti.state == "failed"
    assert "AirflowFailException: tokens/data.arrow row 3: is empty." in capsys.readouterr().out


def test_a_setting_that_does_not_validate_is_refused_before_anything_starts(runner, capsys: pytest.CaptureFixture[str]) -> None:
    ti = runner.train(config={"name": "stub", "train": {"lr": -1}}, retries=3)
    assert ti.state == "failed"
    assert "train.lr: should be greater than 0, got -1." in capsys.readouterr().out
    assert not (runner.store.root / ".work").exists() or not list((runner.store.root / ".work").glob("train*"))


def test_a_crash_is_tried_again_and_the_retry_goes_on(runner, capsys: pytest.CaptureFixture[str]) -> None:
    ti = runner.train(stub={"at": {2: "kill"}}, retries=1, retry_delay=timedelta(0))
    assert ti.state == "success"
    log = capsys.readouterr().out
    assert "Crashed: Training failed after step 1: a process was killed by signal 9" in log
    assert "rank 0 of 1 from step 1" in log


def test_settings_of_the_machine_are_parameters_of_the_task(runner) -> None:
    ti = runner.train(num_processes="{{ 1 + 1 }}", grace="5")
    output = xcoms(ti)["return_value"]
    assert output["facts"]["world_size"] == 2
    config = json.loads((runner.store.place("train", output["key"]) / "config.json").read_text())
    assert config["train"]["num_processes"] == 2
    assert config["train"]["stop_grace"] == 5.0


def test_the_environments_values_are_neither_stored_nor_shown(runner, capsys: pytest.CaptureFixture[str]) -> None:
    ti = runner.train(env={"API_TOKEN": "hush-{{ dag.dag_id }}-123"}, stub={"print": "API_TOKEN"})
    assert ti.state == "success"
    with create_session() as session:
        fields = session.scalar(select(RenderedTaskInstanceFields).where(RenderedTaskInstanceFields.run_id == ti.run_id))
        serialized = SerializedDagModel.get("operators", session=session)
        shown = json.dumps([fields.rendered_fields, serialized.data])
    assert "hush" not in shown
    assert "API_TOKEN is hush-operators-123" in capsys.readouterr().out  # the rank has it; in process, no log is masked
    assert redact("hush-operators-123") == "***"


def test_a_stage_in_a_process_of_its_own(runner, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"name": "small", "download": {"source": "sample", "rows": 20}}
    options = {"task_id": "task", "stage": "download", "config": config, "inputs": {}, "store": str(runner.store.root)}
    ti = runner.run(lambda: StageOperator(**options))
    assert ti.state == "success"
    output = xcoms(ti)["return_value"]
    assert output["reused"] is False
    assert runner.store.find("download", output["key"]) is not None
    assert xcoms(runner.run(lambda: StageOperator(**options)))["return_value"]["reused"] is True


def test_a_stages_refusal_is_the_command_lines_sentence(runner, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"name": "small", "download": {"source": "local", "path": str(runner.root / "nothing.json")}}
    ti = runner.run(
        lambda: StageOperator(task_id="task", stage="download", config=config, inputs={}, store=str(runner.store.root), retries=3)
    )
    assert ti.state == "failed"
    assert f"AirflowFailException: {runner.root}/nothing.json: " in capsys.readouterr().out


def test_progress_in_a_line() -> None:
    card = {"step": 120, "total_steps": 600, "loss": 1.2345, "heldout_loss": 1.3, "state": "running", "eta_seconds": 3723.4}
    assert progress_line(card) == "step 120 of 600, loss 1.2345, held-out loss 1.3000, 1 h 2 min left"
    assert progress_line({**card, "heldout_loss": None, "state": "preempted"}) == "step 120 of 600, loss 1.2345, preempted"
