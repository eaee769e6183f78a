"""One MLflow run for one training folder, found again whatever happens in between.

What identifies the run is decided here, not by the server: `mlflow.json` in the training folder holds an id that the run
carries as a tag, so that a retry, or a registration weeks later, finds the run again, and a run that could never be
created is created then. How far the run has come is asked from the server; sending a line twice changes nothing there.
"""

from __future__ import annotations

import json
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.files import digest, read_object, write_atomically
from talaria.common.redact import scrub
from talaria.config.schema import Config
from talaria.runs.columns import Journal
from talaria.runs.folder import EVALS, METRICS, MLFLOW, OF_SOURCE, SYSTEM, RunFolder, short_id
from talaria.store.manifest import manifests, store_of
from talaria.tracking import lineage
from talaria.tracking.mlflow_client import ARTIFACTS, connect, experiment_id, files_beside, plain_errors, public_uri, run_url
from talaria.tracking.tag_record import OF_A_RUN, packed, unpacked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

ID_TAG = "talaria.training_id"
_METRICS_PER_BATCH = 1000  # MLflow's limits
_PARAMS_PER_BATCH = 100


@dataclass(frozen=True)
class _Source:
    file: str
    marker: str
    """The metric that every line has: its last step says how far the run has come."""
    renamed: Mapping[str, str] | None = None
    """Field -> metric, and only these and the losses by source; None: every number under its own name."""

    def metrics(self, journal: Journal) -> dict[str, str]:
        named = {name: name for name in journal.names() if name not in ("step", "time")}
        if self.renamed is None:
            return named
        by_source = {name: f"heldout_{name}" for name in named if name.startswith(OF_SOURCE)}
        return {name: self.renamed[name] for name in named if name in self.renamed} | by_source


SOURCES = (
    _Source(METRICS, "loss"),
    _Source(EVALS, "heldout_loss", {"loss": "heldout_loss", "seconds": "heldout_seconds"}),
    _Source(SYSTEM, "cost/seconds"),
)
_STATUS = {"done": "FINISHED", "preempted": "KILLED"}


@dataclass
class RunLog:
    """The MLflow run of one training folder. Methods that talk to MLflow raise TrackingError."""

    config: Config
    inputs: Mapping[str, str | Path]
    """Folders of tokenize and base (and train, once it is finished)."""
    folder: Path
    uri: str
    context: Mapping[str, str] | None = None
    run_id: str = ""
    """Empty, as the experiment's, until MLflow has answered."""
    experiment: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    """talaria.* of the run, as they are once it is open."""
    client: MlflowClient = field(init=False)
    _sent: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._journals = {source.file: Journal(self.folder / source.file) for source in SOURCES}

    @property
    def url(self) -> str | None:
        return run_url(self.uri, self.experiment, self.run_id) if self.run_id else None

    def open(self, *, trains: bool) -> None:
        """Find the run of this folder, or create it; tell it what it is; learn how far it has come.

        `trains`: this process trains, so that it is the run's origin now; else an origin that the run has stays.
        """
        self.client = connect(self.uri)
        with plain_errors(self.uri):
            self.experiment = experiment_id(self.client, self.config.registry.experiment, self.artifacts_root())
            run = self._find() or self._create()
            self.run_id = run.info.run_id
            self._describe(run, trains)
            steps = {metric.key: metric.step for metric in run.data.to_proto().metrics}
            self._sent = {source.file: steps.get(source.marker, -1) for source in SOURCES}

    def push(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Send the lines that the run does not have yet; stops early, between batches, where `until` turns true."""
        from mlflow.entities import Metric

        for source in SOURCES:
            for metrics, last in self._pending(source, Metric):
                if until():
                    return
                with plain_errors(self.uri):
                    self.client.log_batch(self.run_id, metrics=metrics)
                self._sent[source.file] = last

    def unsent(self) -> int:
        """Return the number of optimiser steps that the run does not have yet."""
        journal = self._journals[METRICS]
        journal.refresh()
        return len(journal.steps) - bisect_right(journal.steps, self._sent.get(METRICS, -1))

    def running(self) -> None:
        with plain_errors(self.uri):
            self.client.update_run(self.run_id, status="RUNNING")

    def close(self) -> None:
        """Set the run's final status from status.json."""
        status = RunFolder(self.folder).status()
        state, ended = status.get("state"), status.get("time", time.time())
        with plain_errors(self.uri):
            self.client.set_tag(self.run_id, "talaria.state", str(state))
            self.client.set_tag(self.run_id, "talaria.reason", scrub(str(status.get("reason") or "")))
            self.client.set_terminated(self.run_id, _STATUS.get(str(state), "FAILED"), end_time=int(ended * 1000))

    def _pending(self, source: _Source, make: type[Metric]) -> Iterator[tuple[list[Metric], int]]:
        """Yield batches of whole lines, each with its last step."""
        journal = self._journals[source.file]
        journal.refresh()
        steps, names = journal.steps, source.metrics(journal)
        times = journal.column("time")
        columns = {metric: journal.column(name) for name, metric in names.items()}
        start, size = bisect_right(steps, self._sent.get(source.file, -1)), max(1, _METRICS_PER_BATCH // max(1, len(columns)))
        for first in range(start, len(steps), size):
            rows = range(first, min(first + size, len(steps)))
            yield (
                [
                    make(metric, values[row], int(times[row] * 1000), int(steps[row]))
                    for row in rows
                    for metric, values in columns.items()
                    if values[row] == values[row]  # not NaN: a line may lack a field
                ],
                int(steps[rows[-1]]),
            )

    def _find(self) -> Run | None:
        filter_string = f"tags.`{ID_TAG}` = '{training_id(self.folder)}'"
        runs = self.client.search_runs([self.experiment], filter_string, max_results=1)
        return runs[0] if runs else None

    def _create(self) -> Run:
        tags = {ID_TAG: training_id(self.folder), **lineage.source_tags()}
        key = lineage.train_key(self.config, manifests(self.inputs)) or training_id(self.folder)
        name = f"{self.config.name}-{short_id(key)}"
        return self.client.create_run(self.experiment, tags=tags, run_name=name)

    def _describe(self, run: Run, trains: bool) -> None:
        """Log params and inputs that the run lacks, and the current tags."""
        from mlflow.entities import Param, RunTag

        known = manifests(self.inputs)
        self.tags = lineage.run_tags(self.config, known, self.context)
        if not trains:
            self.tags |= {name: value for name, value in unpacked(run.data.tags).items() if name in lineage.ORIGIN}
        tags = [RunTag(name, value) for name, value in packed(self.tags, OF_A_RUN).items()]
        missing = [Param(k, v) for k, v in lineage.run_params(self.config).items() if k not in run.data.params]
        for first in range(0, max(len(missing), 1), _PARAMS_PER_BATCH):
            batch = missing[first : first + _PARAMS_PER_BATCH]
            self.client.log_batch(run.info.run_id, params=batch, tags=[] if first else tags)
        if not run.inputs or not run.inputs.dataset_inputs:
            self.client.log_inputs(run.info.run_id, lineage.dataset_inputs(self.config, known, self.inputs["tokenize"]))

    def artifacts_root(self) -> Path | None:
        """Return the folder for the experiment's files: on the store's disk, so that a model is registered without a copy."""
        if beside := files_beside(self.uri):
            return beside
        store = store_of(self.folder)
        return store / ARTIFACTS if store and self.config.registry.artifacts == "store" else None


def training_id(folder: Path, *, create: bool = False) -> str:
    """Return the id by which the folder's run is found: from its first start, or a digest of its content if it has none."""
    known = read_object(folder / MLFLOW).get("training_id")
    if known:
        return str(known)
    if create:
        fresh = uuid.uuid4().hex
        write_atomically(folder / MLFLOW, json.dumps({"training_id": fresh}))
        return fresh
    metrics = folder / METRICS
    return digest(metrics.read_text(encoding="utf-8") if metrics.exists() else str(folder.absolute()))[:32]


def write_identity(log: RunLog) -> None:
    """Write the run's ids and address into the training folder."""
    identity = {
        "training_id": training_id(log.folder),
        "tracking_uri": public_uri(log.uri),
        "experiment_id": log.experiment,
        "run_id": log.run_id,
        "url": log.url,
    }
    write_atomically(log.folder / MLFLOW, json.dumps(identity))
