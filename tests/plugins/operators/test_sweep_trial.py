"""A trial of a sweep as a task: done, stopped or diverged it is a result; killed it goes on in the next attempt."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select
from talaria.sweep import trial as trials
from talaria.tracking.mlflow_client import connect
from talaria_airflow.operators.sweep_trial import SweepTrialOperator

from tests.support.scripted_ranks import Ranks, configured

CONFIG = configured(0.1, 0.5, 0.6, references=1).model_dump(mode="json")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    made = Ranks()
    monkeypatch.setattr(trials, "run_trial", functools.partial(trials.run_trial, train=made))
    return made


def run(runner: Any, number: int, references: Any = ()) -> tuple[Any, dict[str, Any]]:
    """The task instance and the outcome that it returned."""
    ti = runner.run(
        lambda: SweepTrialOperator(
            task_id="trial",
            config=CONFIG,
            inputs=runner.upstream,
            store=str(runner.store.root),
            trial={"number": number},
            references=list(references),
            map_index_template="{{ trial_name }}",
        )
    )
    with create_session() as session:
        query = select(XComModel.value).where(XComModel.run_id == ti.run_id, XComModel.key == "return_value")
        value = session.scalar(query)
    return ti, json.loads(value) if isinstance(value, str) else value


def test_every_way_in_which_a_trial_ends_is_a_result(runner: Any, ranks: Ranks, mlflow_file: str) -> None:
    done, reference = run(runner, 1)
    assert (done.state, reference["state"], reference["loss"]) == ("success", "done", 1.2)
    assert reference["folder"] == str(runner.store.place("train", reference["key"]))
    stopped, outcome = run(runner, 2, [reference])
    assert (stopped.state, outcome["state"], outcome["step"]) == ("success", "stopped", 2)
    diverged, outcome = run(runner, 3, [reference])
    assert (diverged.state, outcome["state"], outcome["reason"]) == ("success", "failed", "step 2: loss nan")
    before = list(ranks.steps)
    assert run(runner, 1)[1] == {**reference, "reused": True}
    assert ranks.steps == before, "no trial is trained twice"
    client = connect(mlflow_file)
    runs = client.search_runs([one.experiment_id for one in client.search_experiments()], "tags.`talaria.sweep.trial` != ''")
    assert {run.data.tags["talaria.sweep.state"] for run in runs} >= {"done", "stopped", "failed"}


def test_a_killed_trial_fails_its_attempt_and_goes_on_in_the_next(
    runner: Any, ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    ranks.killed_at = (0.1, 2)
    killed, _ = run(runner, 1)
    assert killed.state == "failed"
    assert "TaskPreempted" in capsys.readouterr().out
    resumed, outcome = run(runner, 1)
    assert (resumed.state, outcome["state"], outcome["step"]) == ("success", "done", 4)
    assert [step for _, step in ranks.steps] == [1, 2, 3, 4], "no step was made twice"
