"""A sweep in MLflow: one parent run, the trials' runs nested below it, a table, and a picture that compares them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.files import digest
from talaria.common.redact import scrub
from talaria.config.schema import Config
from talaria.store.store import Output, Store
from talaria.sweep.picture import comparison
from talaria.sweep.plan import Trial, plan
from talaria.sweep.trial import Outcome
from talaria.tracking import lineage
from talaria.tracking.mlflow_client import ARTIFACTS, connect, experiment_id, plain_errors, run_url
from talaria.tracking.tracker import catch_up

if TYPE_CHECKING:
    from mlflow import MlflowClient

SWEEP, TRIAL, STATE, REASON = "talaria.sweep", "talaria.sweep.trial", "talaria.sweep.state", "talaria.sweep.reason"
PARENT = "mlflow.parentRunId"
"""Tag by which MLflow's pages nest a run. A run has one parent: a training that several sweeps share is below the latest."""
TABLE, PICTURE = "sweep/trials.json", "plots/trials.png"


@dataclass(frozen=True)
class SweepRun:
    """The parent run of a sweep. Functions raise TrackingError where MLflow does not play along."""

    client: MlflowClient
    uri: str
    experiment: str
    run_id: str

    @property
    def url(self) -> str | None:
        return run_url(self.uri, self.experiment, self.run_id)

    @classmethod
    def open(cls, config: Config, store: Store, upstream: Mapping[str, Output], uri: str) -> SweepRun:
        """Find the run of these trials on these data, or create it."""
        from mlflow.entities import Param

        client = connect(uri)
        with plain_errors(uri):
            own_files = uri.startswith("sqlite:///") or config.registry.artifacts == "store"
            experiment = experiment_id(client, config.registry.experiment, store.root / ARTIFACTS if own_files else None)
            identity = sweep_identity(config, upstream)
            found = client.search_runs([experiment], f"tags.`{SWEEP}` = '{identity}'", max_results=1)
            if found:
                return cls(client, uri, experiment, found[0].info.run_id)
            tags = {SWEEP: identity, "talaria.config": config.name, **lineage.source_tags(), **lineage.airflow_context()}
            run = client.create_run(experiment, tags=tags, run_name=f"{config.name}-sweep-{identity[:8]}")
            params = {f"sweep.{name}": value for name, value in config.sweep.model_dump(mode="json").items()}
            client.log_batch(run.info.run_id, params=[Param(name, scrub(str(value))) for name, value in params.items()])
            return cls(client, uri, experiment, run.info.run_id)

    def nest(self, trial: Trial, outcome: Outcome, upstream: Mapping[str, Output]) -> str:
        """Put the trial's run below the parent, with how it ended; returns its id."""
        folders = {name: upstream[name].path for name in ("tokenize", "base")}
        log = catch_up(trial.config, {**folders, "train": Path(outcome.folder)}, self.uri)
        tags = {PARENT: self.run_id, TRIAL: trial.number, STATE: outcome.state, REASON: scrub(outcome.reason or trial.label)}
        with plain_errors(self.uri):
            for name, value in tags.items():
                self.client.set_tag(log.run_id, name, value)
        return log.run_id

    def close(self, outcomes: Sequence[Outcome], best: Outcome | None) -> None:
        """Write the table, the picture and the numbers that sum the sweep up."""
        with plain_errors(self.uri), tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
            names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.settings))
            rows = [[one.number, *map(one.settings.get, names), one.state, one.step, one.loss, one.reason] for one in outcomes]
            columns = ["trial", *names, "state", "step", "heldout_loss", "reason"]
            self.client.log_text(self.run_id, json.dumps({"columns": columns, "data": rows}), TABLE)
            if comparison(outcomes, best, picture := Path(scratch) / Path(PICTURE).name):
                self.client.log_artifact(self.run_id, str(picture), Path(PICTURE).parent.as_posix())
            for state in ("done", "stopped", "failed"):
                self.client.log_metric(self.run_id, f"trials_{state}", sum(one.state == state for one in outcomes))
            if best is not None and best.loss is not None:
                self.client.log_metric(self.run_id, "heldout_loss", best.loss)
                self.client.set_tag(self.run_id, "talaria.sweep.best", best.number)
            self.client.set_terminated(self.run_id, "FINISHED" if best else "FAILED", end_time=int(time.time() * 1000))


def sweep_identity(config: Config, upstream: Mapping[str, Output]) -> str:
    """Return a digest of the trials and of what they train on: the same sweep again goes on in the same run."""
    trials = [trial.config.train.key_fields() for trial in plan(config)]
    return digest({"trials": trials, "inputs": {name: upstream[name].key for name in ("tokenize", "base")}})[:32]
