"""A sweep with ranks that follow a script: what is trained, what stops early, what is never trained twice, what MLflow shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import DataError
from talaria.launch.diagnosis import Preempted
from talaria.store.store import Store
from talaria.sweep.early_stop import Evaluation, stops_at
from talaria.sweep.run import sweep
from talaria.tracking.mlflow_client import connect, tracking_uri

from tests.support.scripted_ranks import CURVES, Ranks, configured


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Store(tmp_path / "store")


def test_a_killed_sweep_goes_on_where_it_was_and_its_best_trial_meets_the_gate(store: Store) -> None:
    config, ranks = configured(*CURVES), Ranks(killed_at=(0.4, 2))
    with pytest.raises(Preempted):
        sweep(config, store, train=ranks)
    assert ranks.steps[-1] == (0.4, 2)

    found = sweep(config, store, train=ranks)
    assert len(ranks.steps) == len(set(ranks.steps)), "no step was made twice"
    outcomes = {trial["settings"]["train.lr"]: (trial["state"], trial["step"], trial["loss"]) for trial in found["trials"]}
    assert outcomes == {
        0.1: ("done", 4, 1.2),
        0.2: ("done", 4, 1.6),
        0.3: ("stopped", 1, 3.6),
        0.4: ("done", 4, 0.9),
        0.5: ("stopped", 2, 2.5),
        0.6: ("failed", 0, None),
    }
    assert found["best"] == 4
    assert found["register"]["train_key"] == found["trials"][3]["key"]
    assert found["promote"]["version"] == found["register"]["candidate"]

    client = connect(tracking_uri(store.root))
    parent = client.get_run(found["run_id"])
    assert parent.info.status == "FINISHED"
    numbers = {"trials_done": 3, "trials_stopped": 2, "trials_failed": 1, "heldout_loss": 0.9}
    assert numbers.items() <= parent.data.metrics.items()
    below = f"tags.`mlflow.parentRunId` = '{found['run_id']}'"
    nested = {run.data.tags["talaria.sweep.trial"]: run for run in client.search_runs([parent.info.experiment_id], below)}
    assert sorted(nested) == ["1", "2", "3", "4", "5", "6"]
    assert nested["3"].data.tags["talaria.sweep.state"] == "stopped"
    assert nested["4"].data.params["train.lr"] == "0.4"
    assert nested["4"].data.metrics["heldout_loss"] == 0.9
    assert client.get_model_version("swept", str(found["register"]["candidate"])).run_id == nested["4"].info.run_id
    assert client.list_artifacts(found["run_id"], "plots")[0].file_size > 10_000
    table = json.loads(Path(client.download_artifacts(found["run_id"], "sweep/trials.json", str(store.root))).read_text())
    assert table["columns"] == ["trial", "train.lr", "state", "step", "heldout_loss", "reason"]
    assert table["data"][5] == [6, 0.6, "failed", 0, None, "step 2: loss nan"]

    before = list(ranks.steps)
    again = sweep(config, store, train=ranks)
    assert ranks.steps == before
    assert all(trial["reused"] for trial in again["trials"])
    assert (again["run_id"], again["register"]["reused"]) == (found["run_id"], True)


def test_a_sweep_of_which_no_trial_ends_says_why(store: Store) -> None:
    with pytest.raises(DataError, match=r"No trial of the sweep came to its end \(trial 1: step 2: loss nan\)"):
        sweep(configured(0.6), store, train=Ranks())


def curve(*losses: float, every: float = 1.0) -> list[Evaluation]:
    return [Evaluation(step, step * every, loss) for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("own", "references", "stops"),
    [
        (curve(5, 4, 3), [curve(5, 4, 3)], None),  # equal is not above
        (curve(5, 4.1, 3), [curve(5, 4, 3)], 2),
        (curve(5, 4.1, 3), [curve(5, 4, 3), curve(6, 5, 4)], None),  # the median of two is 4.5
        (curve(2, 9, 9), [curve(5, 4, 3)], None),  # its best so far counts
        (curve(6, 6, 6, every=0.5), [curve(5, 4, 3)], 2),  # at epoch 0.5 no reference was evaluated
        (curve(9, 9, 9), [[]], None),
        (curve(9, 9, 9), [], None),
        (curve(1, 1, 1, 1, 3), [curve(4, 3, 2, 1, 0.5)], None),  # after the last step there is nothing to stop
    ],
    ids=str,
)
def test_a_trial_stops_above_the_references_median(own: Any, references: Any, stops: int | None) -> None:
    found = stops_at(own, references, total_steps=5)
    assert (found and found.step) == stops
