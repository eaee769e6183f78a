"""A sweep with ranks that follow a script: what is trained, what stops early, what is never trained twice, what MLflow shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import DataError
from talaria.config.schema import Config
from talaria.launch.diagnosis import Preempted
from talaria.process.supervisor import Stop
from talaria.runs.folder import EVALS, RunFolder
from talaria.runs.jsonl import read_rows
from talaria.store.store import Store
from talaria.sweep.early_stop import Evaluation, stops_at
from talaria.sweep.run import sweep
from talaria.tracking.mlflow_client import connect, tracking_uri

from tests.support import tiny_pipeline

CURVES = {  # learning rate -> held-out loss after each of four steps
    0.1: [3.0, 2.0, 1.5, 1.2],
    0.2: [3.2, 2.4, 1.9, 1.6],
    0.3: [3.6, 1.8, 1.4, 1.1],  # above the median of the first two at step 1, so that nobody learns how good it gets
    0.4: [3.1, 2.1, 1.6, 0.9],
    0.5: [2.9, 2.5, 2.4, 2.3],
    0.6: [3.0, float("nan")],
}


class Ranks:
    """Stands for `launch.stage.run`: writes what ranks write, and goes on from what is there."""

    def __init__(self, killed_at: tuple[float, int] | None = None) -> None:
        self.steps: list[tuple[float, int]] = []
        """(learning rate, step) of every step that was made, in order."""
        self.killed_at = killed_at

    def __call__(
        self, config: Config, inputs: Mapping[str, Path], out_dir: Path, *, stop: Stop, on_look: Any, **_: Any
    ) -> dict[str, Any]:
        lr, folder = config.train.lr, RunFolder(out_dir)
        folder.set_status("running", total_steps=4, step=0)
        for step, loss in list(enumerate(CURVES[lr], 1))[len(read_rows(out_dir / EVALS)) :]:
            if loss != loss:
                folder.fail(f"step {step}: loss nan", "user", step, rows=[7])
                raise DataError(f"step {step}: loss nan")
            self.steps.append((lr, step))
            folder.metrics({"step": step, "epoch": step / 2, "loss": loss, "time": 1.7e9 + step})
            folder.evaluation({"step": step, "epoch": step / 2, "loss": loss, "time": 1.7e9 + step})
            on_look(out_dir)
            killed = self.killed_at == (lr, step)
            if stop.requested or killed:
                folder.set_status("preempted", step=step)
                raise Preempted("stopped")
        shutil.copytree(inputs["base"], out_dir / "model", ignore=shutil.ignore_patterns("manifest.json"))
        (out_dir / "model" / "README.md").write_text("card")
        folder.set_status("done", step=4)
        return {"steps": 4}


def configured(*rates: float, references: int = 2) -> Config:
    return tiny_pipeline.config(
        download={"rows": 60},
        registry={"model": "swept"},
        evaluate={"prompts": 1, "max_new_tokens": 1},
        sweep={"values": {"train.lr": list(rates)}, "references": references},
    )


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
