"""What the tasks of the DAGs do: the same functions that the command line calls, with Airflow's context around them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset, Context, get_current_context
from airflow.sdk.exceptions import AirflowSkipException
from talaria.common.errors import ConfigError
from talaria.config import load as settings
from talaria.config.schema import Config
from talaria.stages.table import planned_keys
from talaria.store.store import Output, Store
from talaria.workflow import tokenize_parts

from talaria_airflow.operators.stage import store_root
from talaria_airflow.scheduling import config_file

log = logging.getLogger(__name__)
Json = Mapping[str, Any]
PARAMETERS = ("config", "set", "force")


def store() -> Store:
    return Store(store_root())


def configure(context: Context) -> dict[str, Any]:
    """The validated configuration of this run, as JSON, for every later task.

    Raises ConfigError, the command line's sentence, for a setting that does not validate, and AirflowSkipException when a
    scheduled run has nothing to do.
    """
    run, params = context["dag_run"], context["params"]
    if unknown := sorted(set(run.conf or {}) - set(PARAMETERS)):
        raise ConfigError(f"unknown parameter {unknown[0]}; a run takes {', '.join(PARAMETERS)}.")
    config = settings.load(config_file(params["config"]), {**_triggering_revision(context), **params["set"]})
    if config.convert.function:
        _refuse_foreign_code(config.convert.function)
    if run.run_type != "manual" and config.schedule.skip_unchanged and not params["force"]:
        _skip_if_unchanged(config)
    return config.model_dump(mode="json")


def _refuse_foreign_code(function: str) -> None:
    """Before anything runs. Raises ConfigError where the deployment does not allow code of one's own, or there is none."""
    from talaria.data import user_function as custom

    custom.load(function)


def _triggering_revision(context: Context) -> dict[str, str]:
    """The commit that a watcher saw, so that the run trains on it even if the branch has moved on since."""
    events = [event for group in context["triggering_asset_events"].values() for event in group]
    commits = [event.extra["payload"]["commit"] for event in events if event.extra.get("from_trigger")]
    return {"download.revision": commits[-1]} if commits else {}


def _skip_if_unchanged(config: Config) -> None:
    from talaria.registry.promotion import unchanged
    from talaria.tracking.mlflow_client import tracking_uri

    model = config.registry.model or config.name
    if reason := unchanged(model, planned_keys(config)["train"], uri=tracking_uri(store().root)):
        raise AirflowSkipException(reason)


def parts_to_do(config: Json, upstream: Json) -> list[int]:
    """Row ranges to tokenise, each a mapped task."""
    return tokenize_parts.parts_to_do(parse(config), store(), outputs(upstream), force=forced())


def tokenize_part(config: Json, upstream: Json, part: int) -> None:
    tokenize_parts.tokenize_part(parse(config), store(), outputs(upstream), part)


def tokenize(config: Json, upstream: Json, asset: Asset) -> dict[str, Any]:
    """The stage `tokenize`, joined from its row ranges where there are any."""
    output = tokenize_parts.join(parse(config), store(), outputs(upstream), force=forced())
    log.info("tokenize: %s %s", "reused" if output.reused else "made", output.path)
    event = get_current_context()["outlet_events"][asset]
    event.extra = {"key": output.key, "path": str(output.path), "reused": output.reused}
    return output.as_json()


def parse(config: Json) -> Config:
    """The configuration that `configure` validated."""
    return settings.parse(config, "configuration")


def outputs(upstream: Json) -> dict[str, Output]:
    return {name: Output.from_json(value) for name, value in upstream.items()}


def forced() -> bool:
    return bool(get_current_context()["params"]["force"])


def promote(config: Json, registered: Json) -> dict[str, Any]:
    """Give the candidate the champion alias if it beats the base model and the champion."""
    from talaria.registry import promotion
    from talaria.tracking.mlflow_client import tracking_uri

    margin = parse(config).promote.margin
    decided = promotion.promote(registered["model"], registered["candidate"], margin=margin, uri=tracking_uri(store().root))
    log.info("%s version %s: %s", decided["model"], decided["version"], decided["reason"])
    return decided


def rollback(context: Context) -> dict[str, Any]:
    """Give the champion alias back to the previous champion, in the name of the user who triggered the run."""
    from talaria.registry import promotion
    from talaria.tracking.mlflow_client import tracking_uri

    run, params = context["dag_run"], context["params"]
    who = run.triggering_user_name or "unknown"
    uri = tracking_uri(store().root)
    moved = promotion.rollback(params["model"], reason=params["reason"], who=who, uri=uri, request=run.run_id)
    log.info("%s: champion is version %s again, instead of %s", moved["model"], moved["champion"], moved["from"])
    return moved
