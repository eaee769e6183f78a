"""A sweep of six trainings through the services that `make up` starts, stopped in the middle and started again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from talaria.devstack.follow_run import failure
from talaria.devstack.services import down, up
from talaria.registry.promotion.champion import champion
from talaria.runs.folder import EVENTS, METRICS
from talaria.runs.jsonl import read_rows
from talaria.tracking.mlflow_client import connect

from tests.support.airflow_env import Stack, running_stack
from tests.support.process_trees import eventually

CONFIG = {
    "download": {"source": "sample", "rows": 300},
    "base": {"source": "random", "vocab_size": 512, "shape": {"hidden_size": 32, "num_hidden_layers": 2}},
    "tokenize": {"max_tokens": 512, "validation_fraction": 0.1},
    "train": {"num_processes": 1, "max_steps": 80, "eval_every": 20, "global_batch": 32, "precision": "fp32"},
    "evaluate": {"prompts": 2, "max_new_tokens": 2},
    "sweep": {"values": {"train.lr": [1e-2, 1e-5], "train.seed": [1, 2, 3]}, "references": 3},
}
pytestmark = [pytest.mark.timeout(1800), pytest.mark.stack]
until = partial(eventually, within=900, every=0.3)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("sweeping")
    (folder / "configs").mkdir()
    (folder / "configs" / "six.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALARIA_CONFIGS", str(folder / "configs"))
        with running_stack(folder / "talaria") as stack:
            until(lambda: stack.api.has_dag("sweep"))
            yield stack


def trainings(store: Path) -> list[Path]:
    return sorted([*store.glob("train/*/"), *store.glob(".work/train-*/")])


def test_six_trials_stopped_in_the_middle_are_each_trained_once(stack: Stack) -> None:
    store = stack.home.store
    stack.api.unpause("sweep")
    run_id = "six"
    stack.api.trigger("sweep", run_id, {"config": "six"})

    def second_trains() -> bool:
        finished = list(store.glob("train/*/"))  # first: a trial that ends between the two looks is not taken for the second
        working = [folder for folder in store.glob(".work/train-*/") if len(read_rows(folder / METRICS)) >= 5]
        assert stack.api.run("sweep", run_id)["state"] != "failed", failure(stack.api, "sweep", run_id)
        return bool(working) and len(finished) == 1

    until(second_trains)
    down(stack.home, Console(quiet=True))
    assert len(trainings(store)) == 2, "the pool lets one train at a time"
    up(stack.home, Console(quiet=True))
    until(lambda: stack.api.run("sweep", run_id)["state"] in ("success", "failed"))
    assert stack.api.run("sweep", run_id)["state"] == "success", failure(stack.api, "sweep", run_id)

    told = {folder: read_rows(folder / EVENTS) for folder in trainings(store)}
    assert len(told) == 6
    assert [sum(event["kind"] == "start" for event in events) for events in told.values()] == [1] * 6
    resumed = [event for events in told.values() for event in events if event["kind"] == "resume"]
    saved = [event for events in told.values() for event in events if event["kind"] == "preempted"]
    assert len(resumed) == 1
    assert resumed[0]["step"] in {event["step"] for event in saved}, "not a step was made twice"

    client = connect(stack.ports.mlflow_url)
    experiment = client.get_experiment_by_name("talaria").experiment_id
    (parent,) = client.search_runs([experiment], "tags.`talaria.sweep` != ''")
    assert {"trials_done": 3, "trials_stopped": 3, "trials_failed": 0}.items() <= parent.data.metrics.items()
    nested = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert sorted(run.data.tags["talaria.sweep.trial"] for run in nested) == ["1", "2", "3", "4", "5", "6"]
    assert client.list_artifacts(parent.info.run_id, "plots")
    best = json.loads(json.dumps(stack.api.xcom("sweep", run_id, "choose")))
    assert champion("six", uri=stack.ports.mlflow_url)["train_key"] == best["train"]["key"]
    assert str(stack.api.run("sweep", run_id)["note"])
