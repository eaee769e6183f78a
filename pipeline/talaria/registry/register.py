"""Registration: every model that a training kept becomes a version of the registered model, without copying a weight.

A version's files are hard links to the store's, inside the MLflow experiment's folder on the same disk; where MLflow keeps its
files elsewhere, they are uploaded. What a version is, is decided by the training's key, the step and the files' digests, so
registering again finds the versions that are there.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.files import digest, read_object
from talaria.common.locks import locked
from talaria.common.redact import scrub
from talaria.config.schema import Config
from talaria.evaluation.stage import REPORT
from talaria.registry import mlflow_model
from talaria.registry.kept_models import FINAL, KeptModel, candidate, kept_models
from talaria.registry.run_artifacts import log_artifacts
from talaria.registry.version_items import BASE_ITEMS, ITEMS, items_path, log_evaluation
from talaria.registry.versions import (
    BASE_LOSS,
    CANDIDATE,
    CHAMPION,
    DIGEST,
    HELDOUT,
    LOSS,
    MODEL_ID,
    STEP,
    TOKENS,
    TRAIN_KEY,
    TRAINING,
    as_number,
    find_model,
    local_folder,
    of_training,
    set_tags,
    tags_of,
)
from talaria.runs.columns import Journal
from talaria.runs.folder import EVALS, METRICS, RunFolder, short_id
from talaria.runs.model_card import Curve, Facts, card, data_label, readme
from talaria.store.manifest import Manifests, manifests
from talaria.tracking import lineage
from talaria.tracking.mlflow_client import plain_errors, version_url
from talaria.tracking.run_log import RunLog
from talaria.tracking.system_metrics import cost
from talaria.tracking.tag_record import OF_A_VERSION, packed
from talaria.tracking.tracker import catch_up

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def register(config: Config, inputs: Mapping[str, Path], *, uri: str, context: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Make the kept models of `inputs["train"]` versions, and bring its MLflow run up to date.

    `inputs`: folders of train, tokenize and evaluate; report where there is one. `context`: further tags of the run.
    Raises DataError where training has not finished or a file is damaged, TrackingError where MLflow does not play along.
    """
    known = manifests(inputs)
    report = read_object(Path(inputs["evaluate"]) / REPORT)
    models = kept_models(Path(inputs["train"]), report, known.get("train"))
    key = lineage.train_key(config, known) or digest(models[-1].digest)
    log = catch_up(config, inputs, uri, context)
    with plain_errors(uri), _one_at_a_time(log, config.registered_name):
        work = _Registration(config, {n: Path(f) for n, f in inputs.items()}, log, known, report, key, models)
        versions = work.run()
    stands = candidate(models)
    chosen = next(entry["version"] for entry in versions if entry["step"] == stands.step)
    return {
        "model": config.registered_name,
        "versions": [{name: entry[name] for name in ("version", "step", "role", "loss")} for entry in versions],
        "candidate": chosen,
        "run_id": log.run_id,
        "run_url": log.url,
        "model_url": version_url(uri, config.registered_name, chosen),
        "train_key": key,
        "data": log.tags.get("talaria.data.revision") or log.tags.get("talaria.data.digest"),
        "reused": all(entry["reused"] for entry in versions),
    }


@dataclass(frozen=True)
class _Registration:
    config: Config
    inputs: Mapping[str, Path]
    log: RunLog
    known: Manifests
    report: Mapping[str, Any]
    key: str
    models: Sequence[KeptModel]

    @property
    def client(self) -> MlflowClient:
        return self.log.client

    @property
    def name(self) -> str:
        return self.config.registered_name

    def run(self) -> list[dict[str, Any]]:
        self._ensure_model()
        known = ((tags_of(version), version) for version in of_training(self.client, self.name, self.key))
        there = {(tags.get(STEP), tags.get(DIGEST)): version for tags, version in known}
        if any((str(kept.step), kept.digest) not in there for kept in self.models):
            log_artifacts(self.log, self.inputs)
        else:
            self._evaluated_again([(kept, there[str(kept.step), kept.digest]) for kept in self.models])
        entries = []
        for kept in self.models:
            version = there.get((str(kept.step), kept.digest))
            number = int(version.version) if version else self._create(kept)
            entry = {"version": number, "step": kept.step, "role": kept.role, "loss": kept.loss, "reused": bool(version)}
            entries.append(entry)
        return entries

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        about = f"{self.config.name}: {self.config.base.origin} fine-tuned on {self.config.data_origin} by Talaria."
        try:
            self.client.create_registered_model(self.name, {"talaria.config": self.config.name}, scrub(about))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _evaluated_again(self, versions: Sequence[tuple[KeptModel, ModelVersion]]) -> None:
        """Give existing versions the results of this evaluation, where theirs are another's (a task was added, say)."""
        stale = [(kept, found) for kept, found in versions if tags_of(found).get(ITEMS) != self._results(kept)[ITEMS]]
        if stale:
            log_evaluation(self.client, self.log.run_id, self.inputs["evaluate"])
        for kept, found in stale:
            set_tags(self.client, self.name, str(found.version), self._results(kept))

    def _results(self, kept: KeptModel) -> dict[str, str | None]:
        """Where the results per item of a version and of its base are, as tags."""
        evaluation = self.inputs["evaluate"]
        own = items_path(evaluation, "tuned" if kept.role == FINAL else kept.folder.name)
        return {ITEMS: own, BASE_ITEMS: items_path(evaluation, "base")}

    def _create(self, kept: KeptModel) -> int:
        kept.verify()
        tags = self._tags(kept)
        model_id, location = self._logged_model(kept, tags)
        facts = self._facts(kept, tags)
        self._place(kept, location, scrub(readme(facts)), model_id)
        self.client.finalize_logged_model(model_id, "READY")
        self._measure(kept, model_id)
        shown = packed(tags | {MODEL_ID: model_id})
        version = self.client.create_model_version(
            self.name,
            location,
            self.log.run_id,
            shown,
            description=scrub(card(facts)),
            model_id=model_id,
            await_creation_for=0,  # MLflow makes it in one call; waiting would be told on stderr, which Airflow shows in red
        )
        return int(version.version)

    def _tags(self, kept: KeptModel) -> dict[str, str]:
        base = (self.report.get("base") or {}).get("loss")
        tuned = self.report.get("tuned") or {}
        values = {
            TRAINING: short_id(self.key),
            TRAIN_KEY: self.key,
            "talaria.data": data_label(self.log.tags),
            STEP: kept.step,
            "talaria.role": kept.role,
            DIGEST: kept.digest,
            CANDIDATE: "true" if kept is candidate(list(self.models)) else None,
            LOSS: kept.loss,
            BASE_LOSS: base if kept.loss is not None else None,
            "talaria.exact_match": tuned.get("exact_match") if kept.role == FINAL else None,
            HELDOUT: (self.report.get("heldout") or {}).get("digest"),
            TOKENS: str(self.inputs["tokenize"].absolute()),
            **self._results(kept),
        }
        return self.log.tags | {name: str(value) for name, value in values.items() if value is not None}

    def _logged_model(self, kept: KeptModel, tags: Mapping[str, str]) -> tuple[str, str]:
        """(id, location of its files) of MLflow's model for this kept one; one that a killed registration left is taken up."""
        wanted = {TRAINING: short_id(self.key), DIGEST: kept.digest, STEP: str(kept.step)}
        mine = " AND ".join([f"name = '{self.name}'", *(f"tags.`{name}` = '{value}'" for name, value in wanted.items())])
        found = self.client.search_logged_models([self.log.experiment], filter_string=mine, max_results=1)
        if found:
            return found[0].model_id, found[0].artifact_location
        params = {name: value for name, value in lineage.run_params(self.config).items() if name.startswith("train.")}
        shown = packed(tags, (*OF_A_VERSION, DIGEST)) | lineage.source_tags()
        made = self.client.create_logged_model(
            self.log.experiment, self.name, self.log.run_id, shown, params=params, model_type="causal-lm"
        )
        return made.model_id, made.artifact_location

    def _place(self, kept: KeptModel, location: str, text: str, model_id: str) -> None:
        folder = local_folder(location)
        if folder is not None:
            mlflow_model.fill(folder, kept.folder, card=text, run_id=self.log.run_id, model_id=model_id)
            return
        with tempfile.TemporaryDirectory(dir=kept.folder.parent, prefix=".upload-") as staging:  # same disk: links, no copy
            mlflow_model.fill(Path(staging), kept.folder, card=text, run_id=self.log.run_id, model_id=model_id)
            self.client.log_model_artifacts(model_id, staging)

    def _measure(self, kept: KeptModel, model_id: str) -> None:
        """Log the version's numbers, linked to the model and the held-out set, and link the model to the run."""
        from mlflow.entities import LoggedModelOutput

        outputs = self.client.get_run(self.log.run_id).outputs
        if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else [])}:
            self.client.log_outputs(self.log.run_id, [LoggedModelOutput(model_id, kept.step)])
        heldout = (self.report.get("heldout") or {}).get("digest")
        for name, value in metrics_of(kept, self.report).items():
            self.client.log_metric(
                self.log.run_id,
                name,
                value,
                timestamp=int(RunFolder(self.inputs["train"]).status().get("time", time.time()) * 1000),
                step=kept.step,
                dataset_name=lineage.heldout_name(self.config) if heldout else None,
                dataset_digest=lineage.short_digest(heldout) if heldout else None,
                model_id=model_id,
            )

    def _facts(self, kept: KeptModel, tags: Mapping[str, str]) -> Facts:
        train = self.inputs["train"]
        status = RunFolder(train).status()
        return Facts(
            config=self.config,
            step=kept.step,
            total_steps=int(status["step"]),
            role=kept.role,
            loss=kept.loss,
            by_source=kept.by_source,
            report=self.report,
            tags=tags,
            data={stage: self.known.get(stage, {}).get("facts", {}) for stage in ("convert", "tokenize")},
            curve=curve(train),
            cost=cost(train),
            ranks=status.get("world_size"),
            champion=self._champion(tags),
            date=time.strftime("%Y-%m-%d", time.gmtime(status.get("time", time.time()))),
        )

    def _champion(self, tags: Mapping[str, str]) -> tuple[int, float] | None:
        """The champion of now and its loss, where it is known on the same held-out conversations."""
        number = find_model(self.client, self.name).get(CHAMPION)
        if number is None:
            return None
        its = tags_of(self.client.get_model_version(self.name, str(number)))
        loss = as_number(its.get(LOSS))
        return (number, loss) if loss is not None and its.get(HELDOUT) == tags.get(HELDOUT) is not None else None


def metrics_of(kept: KeptModel, report: Mapping[str, Any]) -> dict[str, float]:
    """Return the evaluation's finite numbers for one version under their MLflow names.

    MLflow keeps a model's NaN as 0, which would be the best of all losses, and infinity as 1.8e308 (findings/mlflow_model_nan.sh,
    findings/mlflow_infinite_metric.sh). The version's tags say them as they are.
    """
    tuned, base = report.get("tuned") or {}, report.get("base") or {}
    values = {"eval_loss": kept.loss, "eval_base_loss": base.get("loss")}
    values |= {f"eval_loss/{name}": loss for name, loss in kept.by_source.items()}
    values |= {f"eval_base_loss/{name}": loss for name, loss in base.get("by_source", {}).items()}
    if kept.role == FINAL:
        values |= {
            "eval_exact_match": tuned.get("exact_match"),
            "eval_base_exact_match": base.get("exact_match"),
            "eval_stopped": tuned.get("stopped"),
            **{f"eval_task_{name}": one["score"] for name, one in report.get("tasks", {}).get("tuned", {}).items()},
            **{f"eval_base_task_{name}": one["score"] for name, one in report.get("tasks", {}).get("base", {}).items()},
        }
    return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


def curve(train: Path) -> Curve:
    metrics, evals = Journal(train / METRICS), Journal(train / EVALS)
    metrics.refresh()
    evals.refresh()
    heldout = {int(step): loss for step, loss in zip(evals.steps, evals.column("loss"), strict=True)}
    return Curve([int(step) for step in metrics.steps], list(metrics.column("loss")), heldout)


@contextlib.contextmanager
def _one_at_a_time(log: RunLog, name: str) -> Iterator[None]:
    """Two registrations of one model at once (a retry beside a task that is not quite dead) would make versions twice."""
    root = log.artifacts_root()
    if root is None:
        yield
        return
    with locked(root / f".{name}.lock"):
        yield
