"""Say what a run of a configuration will do, and everything that is certain to make it fail, before anything is made.

`talaria plan`, `talaria run` and the first task of the DAGs ask here. Nothing is downloaded but the small files of a base model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from talaria.common.errors import DataError, Unavailable, UserError
from talaria.config.schema import Config
from talaria.evaluation.tasks.checks import check_tasks
from talaria.stages.table import STAGES, inputs_of, key_of, resolve
from talaria.store.remote import RemoteError
from talaria.store.store import Store
from talaria.train.telemetry.mirrors import require_installed
from talaria.workflow.forecast import base, disk, ranks, training

Facts = dict[str, Any]
REUSED, FETCHED, RUNS = "reused", "fetched from the remote", "runs"


class Problems:
    """Collects the sentences of what cannot work, so that all of them are told at once."""

    def __init__(self) -> None:
        self.found: list[UserError] = []

    def __call__(self, check: Callable[[], Any]) -> Any:
        """Return what `check` returns; None where it refuses, which is noted."""
        try:
            return check()
        except UserError as error:
            if str(error) not in self.sentences:
                self.found.append(error)
            return None

    @property
    def sentences(self) -> list[str]:
        return [str(error) for error in self.found]


def forecast(config: Config, store: Store, *, uri: str | None, trains_here: bool = True, force: bool = False) -> Facts:
    """Return what a run will reuse, make, take and cost, and `problems`: a sentence for everything that is certain to fail.

    `uri`: MLflow's address; None: it is not looked at. `trains_here`: this machine trains, so its devices count.
    """
    problems = Problems()
    stages, keys = _stages(config, store, problems, force)
    model = problems(lambda: base.look(config, store, keys)) or base.UNKNOWN
    problems(lambda: _require_settings_that_fit(config))
    if trains_here:
        problems(lambda: require_installed(config.train.report_to))
    problems(lambda: check_tasks(config.evaluate))
    where = problems(lambda: ranks.place(config, trains_here)) or ranks.NOWHERE
    trained = training.estimate(config, store, keys, stages, model, where)
    needed = disk.needed(config, store, keys, stages, model, trained)
    problems(lambda: disk.require_room(needed))
    memory = ranks.memory(config, model.size, where)
    if stages.get("train") == RUNS:
        problems(lambda: ranks.require_memory(config, memory))
    tracking = problems(lambda: _mlflow(config, store, uri)) if uri else None
    return {
        "config": config.name,
        "model": config.registered_name,
        "stages": stages,
        "base": model.as_json(),
        "training": trained,
        "memory": memory,
        "disk": needed,
        "mlflow": tracking,
        "problems": problems.sentences,
        "passing": bool(problems.found) and all(isinstance(error, Unavailable) for error in problems.found),
    }


def refuse(facts: Mapping[str, Any]) -> None:
    """Raise UserError with all of a forecast's problems; Unavailable where each of them may be over at another attempt."""
    if not (sentences := facts["problems"]):
        return
    text = sentences[0] if len(sentences) == 1 else f"{len(sentences)} things would stop this run. {' '.join(sentences)}"
    raise (Unavailable if facts["passing"] else UserError)(text)


def _stages(config: Config, store: Store, problems: Problems, force: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return stage -> what becomes of it, and stage -> key. A stage whose key cannot be known runs."""
    states: dict[str, str] = {}
    keys: dict[str, str] = {}
    for name, stage in STAGES.items():
        states[name] = RUNS
        if not all(needed in keys for needed in inputs_of(stage, config)):
            if stage.fingerprint:
                problems(partial(resolve(stage.fingerprint), config))
            continue
        if found := problems(partial(key_of, stage, config, keys)):
            keys[name] = found[0]
            states[name] = RUNS if force else _state(store, name, found[0])
    return states, keys


def _state(store: Store, stage: str, key: str) -> str:
    if store.here(stage, key):
        return REUSED
    if store.remote is None:
        return RUNS
    try:
        return FETCHED if store.remote.manifest(store.at_remote(store.place(stage, key))) else RUNS
    except RemoteError:  # a stage makes its output then
        return RUNS


def _require_settings_that_fit(config: Config) -> None:
    """Raise what the trainer would raise after the data has been made."""
    train = config.train
    if not config.holds_out:
        for name, wanted in (("keep_best", train.keep_best), ("patience", train.patience), ("eval_every", train.eval_every)):
            if wanted:
                raise DataError(
                    f"train.{name} needs held-out conversations: "
                    "set tokenize.validation_fraction (or sources.NAME.held_out) above 0."
                )


def _mlflow(config: Config, store: Store, uri: str) -> Facts:
    """Reach MLflow, and write to it: the experiment, made where it is missing. Raises TrackingError or UserError."""
    from talaria.tracking.mlflow_client import (
        ARTIFACTS,
        MODEL_TRAINING,
        connect,
        experiment_id,
        files_beside,
        plain_errors,
        public_uri,
    )

    client = connect(uri)
    kept = files_beside(uri) or (store.root / ARTIFACTS if config.registry.artifacts == "store" else None)
    with plain_errors(uri):
        found = experiment_id(client, config.registry.experiment, kept)
        for name, value in MODEL_TRAINING.items():
            client.set_experiment_tag(found, name, value)
    return {"address": public_uri(uri), "experiment": config.registry.experiment}
