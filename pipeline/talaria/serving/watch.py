"""The watch: the served champion answers a sample of the tasks; where it falls, the champion before it comes back."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from talaria.common.errors import ConfigError, DataError, Unavailable, UserError
from talaria.common.files import digest
from talaria.config.schema import Config
from talaria.evaluation.tasks.called_tools import as_text
from talaria.evaluation.tasks.scoring import TaskResult, score_task
from talaria.evaluation.tasks.task_file import TaskItem, load_items
from talaria.registry.promotion.champion import champion
from talaria.registry.promotion.rollback import rollback
from talaria.registry.versions import PREVIOUS, as_number, drop_tags, set_tags, tags_of
from talaria.serving.client import ServedModel
from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

WHO = "watch-champion"
SCORE, BEST, ITEMS, AT = (f"talaria.watch.{name}" for name in ("score", "best", "items", "at"))
RESTORED = "talaria.watch.restored_from"
METRIC = "watch_score"
_AT_A_TIME = 8


@dataclass(frozen=True)
class WatchScore:
    """What a version's answers were worth."""

    version: int
    score: float
    """Mean over all items."""
    by_task: Mapping[str, float]
    count: int
    items: str
    """Digest of the items and how they are judged: scores on others do not compare."""

    @property
    def described(self) -> str:
        return f"{self.score:.3f} on {self.count} prompts of {', '.join(self.by_task)}"


def watch(config: Config, *, uri: str, request: str | None = None) -> dict[str, Any]:
    """Score the served champion once, and roll it back where it has fallen by more than watch.margin.

    It is compared with the best that it, or the champion before it, reached on the same items. `request`: an id (Airflow's
    run_id); a second call with the same one does not roll back twice. Returns model, version, score, by_task, reference,
    rolled_back_to and a sentence, `reason`. Raises Unavailable where the server, its swap or a judge has to be waited for,
    DataError where going back cannot help.
    """
    model, url = config.registered_name, config.serving.url
    if url is None or not config.evaluate.tasks:
        missing = "serving.url" if url is None else "evaluate.tasks"
        raise ConfigError(f"{config.name}: the watch needs {missing}; set it in the configuration.")
    now = champion(model, uri=uri)
    if now is None:
        raise DataError(f"{model}: has no champion to watch.")
    sample = sampled(config)
    with ServedModel(url, model) as served:
        served.wait_for(now["version"], config.serving.swap_seconds)
        measured = measure(config, sample, served, now["version"])
        served.wait_for(now["version"], 0)  # else some answers were another version's
    client = connect(uri)
    with plain_errors(uri):
        return _decide(client, config, measured, uri, request)


def sampled(config: Config) -> dict[str, list[TaskItem]]:
    """Task -> at most watch.sample of its items, always the same ones. Choices by likelihood are left out: no server gives those.

    Raises DataError where nothing is left.
    """
    found = {}
    for task in config.evaluate.tasks:
        items = [item for item in load_items(task) if item.judge != "choice"]
        items.sort(key=lambda item: hashlib.sha256(item.id.encode()).digest())
        if items:
            found[task.name] = items[: config.watch.sample]
    if not found:
        raise DataError(f"{config.name}: all items of evaluate.tasks are choices by likelihood, which no server gives.")
    return found


def measure(config: Config, sample: Mapping[str, Sequence[TaskItem]], served: ServedModel, version: int) -> WatchScore:
    """Ask for all answers and judge them. An answer that the model fails to write counts as wrong.

    Raises Unavailable where an answer or a verdict could not be had, UserError where the server refuses a prompt.
    """
    lost: list[UserError] = []  # a server that is away or refuses says nothing about the model

    def answer(messages: Sequence[Mapping[str, Any]], tools: str | None) -> str:
        try:
            return as_text(served.message(messages, tools))
        except UserError as error:
            lost.append(error)
            raise

    results: dict[str, TaskResult] = {}
    for task in config.evaluate.tasks:
        if task.name in sample:
            results[task.name] = score_task(task, answer, items=sample[task.name], at_a_time=_AT_A_TIME)
    if lost:
        raise lost[0]
    rows = [row for result in results.values() for row in result.rows]
    unjudged = [row.verdict.why for row in rows if row.verdict.failed and row.answer is not None]
    if unjudged:
        raise Unavailable(f"{len(unjudged)} answers of {config.registered_name} were not judged: {unjudged[0]}.")
    asked = {
        task.name: [task.key_fields(), [item.id for item in sample[task.name]]]
        for task in config.evaluate.tasks
        if task.name in sample
    }
    by_task = {name: result.score for name, result in results.items()}
    return WatchScore(version, sum(row.verdict.score for row in rows) / len(rows), by_task, len(rows), digest(asked)[:16])


def _decide(client: MlflowClient, config: Config, measured: WatchScore, uri: str, request: str | None) -> dict[str, Any]:
    """Compare, write down, and go back where that is called for. Returns what `watch` does."""
    model, margin = config.registered_name, config.watch.margin
    version = client.get_model_version(model, str(measured.version))
    reference = _reference(client, version, measured)
    _record(client, version, measured)
    facts = {
        "model": model,
        "version": measured.version,
        "score": measured.score,
        "by_task": dict(measured.by_task),
        "reference": reference[0] if reference else None,
        "rolled_back_to": None,
    }
    beside = f", beside {reference[0]:.3f} of {reference[1]}" if reference else ""
    if reference is None or reference[0] - measured.score <= margin:
        if RESTORED in tags_of(version):
            drop_tags(client, model, version.version, (RESTORED,))
        return facts | {"reason": f"Version {measured.version} of {model} scores {measured.described}{beside}."}
    reason = f"it scores {measured.described}{beside}, and watch.margin is {margin:g}"
    _refuse_to_go_back(version, reason)
    moved = _back(measured, model, reason, uri, request)
    if moved is None:
        return facts | {"reason": f"Another version of {model} became champion while version {measured.version} was tested."}
    back = moved["champion"]
    set_tags(client, model, back, {RESTORED: moved["from"]})
    told = f"Version {moved['from']} of {model} is rolled back to version {back}: {reason}."
    return facts | {"rolled_back_to": back, "reason": told}


def _refuse_to_go_back(version: ModelVersion, reason: str) -> None:
    """Raise DataError where another rollback would not help, or there is nothing to go back to."""
    if RESTORED in (tags := tags_of(version)):
        raise DataError(
            f"{version.name}: {reason}. The watch went back to this version from version {tags[RESTORED]}; "
            "as it falls too, the cause is not the version, so look at the server."
        )
    if PREVIOUS not in tags:
        raise DataError(f"{version.name}: {reason}. It is the first champion, so there is none to go back to.")


def _back(measured: WatchScore, model: str, reason: str, uri: str, request: str | None) -> dict[str, Any] | None:
    """Roll the measured version back; None where it is not the champion any more."""
    now = champion(model, uri=uri)
    if now is None or now["version"] != measured.version:
        return None
    return rollback(model, reason=reason, who=WHO, uri=uri, request=request)


def _reference(client: MlflowClient, version: ModelVersion, measured: WatchScore) -> tuple[float, str] | None:
    """The best score on these items of the version itself or the champion before it, and whose that is; None without one."""
    found = []
    if (own := _best(version, measured)) is not None:
        found.append((own, "its own earlier answers"))
    if PREVIOUS in (tags := tags_of(version)):
        before = client.get_model_version(version.name, tags[PREVIOUS])
        if (best := _best(before, measured)) is not None:
            found.append((best, f"version {before.version}"))
    return max(found, default=None)


def _best(version: ModelVersion, measured: WatchScore) -> float | None:
    tags = tags_of(version)
    return as_number(tags.get(BEST)) if tags.get(ITEMS) == measured.items else None


def _record(client: MlflowClient, version: ModelVersion, measured: WatchScore) -> None:
    """Write the score on the version, and as a point of its run's curve."""
    best = _best(version, measured)
    tags = {
        SCORE: measured.score,
        BEST: measured.score if best is None else max(best, measured.score),
        ITEMS: measured.items,
        AT: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    set_tags(client, version.name, version.version, tags)
    if version.run_id:
        client.log_metric(version.run_id, METRIC, measured.score, timestamp=int(time.time() * 1000), step=int(time.time()))
