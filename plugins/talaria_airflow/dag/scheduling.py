"""When a configuration's DAG runs by itself, and which configurations there are: read from files when a DAG is parsed."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from talaria.common.errors import ConfigError
from talaria.config import load as settings
from talaria.config.folder import config_file, config_names
from talaria.config.schema import Config

from talaria_airflow.notifiers.alert import LateAlert
from talaria_airflow.triggers.hub_revision import HubRevisionTrigger


def default_config() -> str:
    """Return what the trigger form of the DAG `sft` starts with: TALARIA_CONFIG, or tiny, or the first."""
    names = config_names()
    return os.environ.get("TALARIA_CONFIG") or ("tiny" if "tiny" in names else next(iter(names), "tiny"))


def scheduled_configs() -> list[str]:
    """Return the configurations with a schedule, each of which gets its own DAG. Those that do not validate are left out."""
    found = {name: _load(name) for name in config_names()}
    return [name for name, config in found.items() if isinstance(config, Config) and schedule_of(config) is not None]


def refuse_broken_configs() -> None:
    """Raise ConfigError with a sentence for each configuration that does not validate."""
    if broken := [str(found) for name in config_names() if isinstance(found := _load(name), ConfigError)]:
        raise ConfigError("\n".join(broken))


def _load(name: str) -> Config | ConfigError:
    try:
        config = settings.load(config_file(name))
        schedule_of(config)
    except ConfigError as error:
        return error
    return config


def schedule_of(config: Config) -> Any:
    """Return the value of `DAG(schedule=...)`: the cron expression, the data set's revision on the hub, both (whichever is first)
    or None. Raises ConfigError for a cron expression that is none."""
    cron = _cron(config) if config.schedule.cron else None
    if not config.schedule.on_new_revision:
        return cron
    source = config.download
    trigger = HubRevisionTrigger(source.repo, source.revision, config.schedule.poll_seconds)
    watched = Asset(
        name=f"hub:{source.repo}@{source.revision}",
        uri=f"https://huggingface.co/datasets/{source.repo}/tree/{source.revision}",
        watchers=[AssetWatcher(name="revision", trigger=trigger)],
    )
    return AssetOrTimeSchedule(timetable=cron, assets=[watched]) if cron else [watched]


def _cron(config: Config) -> CronTriggerTimetable:
    from airflow.exceptions import AirflowTimetableInvalid
    from airflow.timetables.trigger import CronTriggerTimetable as SchedulersOwn

    expression, timezone = config.schedule.cron or "", config.schedule.timezone
    try:
        SchedulersOwn(expression, timezone=timezone).validate()
    except AirflowTimetableInvalid:
        raise ConfigError(
            f"{config.name}: schedule.cron {expression!r} is no cron expression; write for example '0 3 * * 1'."
        ) from None
    return CronTriggerTimetable(expression, timezone=timezone)


def deadline_of(config: Config) -> DeadlineAlert | None:
    """Return the value of `DAG(deadline=...)`: a message if a run is not done schedule.deadline_hours after it was queued."""
    hours = config.schedule.deadline_hours
    if hours is None:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=hours),
        callback=AsyncCallback(LateAlert, kwargs={"hours": hours, "channels": config.alerts.model_dump()}),
    )
