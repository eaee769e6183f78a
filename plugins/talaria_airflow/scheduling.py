"""When the DAG `sft` runs by itself, and with which configurations: read from files when the DAG is parsed."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, AssetOrTimeSchedule, AssetWatcher, CronTriggerTimetable
from airflow.sdk.definitions.callback import AsyncCallback
from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
from talaria.common.errors import ConfigError
from talaria.config.schema import Config

from talaria_airflow.notifiers.webhook import Webhook
from talaria_airflow.triggers.hub_revision import HubRevisionTrigger

LATE = "{{ dag_run.dag_id }} {{ dag_run.dag_run_id }} is late: it is not done."


def config_folder() -> Path:
    """TALARIA_CONFIGS, or the repository's configs/."""
    return Path(os.environ.get("TALARIA_CONFIGS") or Path(__file__).resolve().parents[2] / "configs")


def config_names() -> list[str]:
    """Configurations that a run can name."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_file(name: str) -> Path:
    """The file of a configuration. Names only, no paths: a trigger must not read files of its choice."""
    if name not in config_names():
        raise ConfigError(f"unknown configuration {name!r}; {config_folder()} has {', '.join(config_names()) or 'none'}.")
    return config_folder() / f"{name}.yaml"


def default_config() -> str:
    """The configuration of scheduled runs, and what the trigger form starts with: TALARIA_CONFIG, or tiny, or the first."""
    names = config_names()
    return os.environ.get("TALARIA_CONFIG") or ("tiny" if "tiny" in names else next(iter(names), "tiny"))


def schedule_of(config: Config) -> Any:
    """What `DAG(schedule=...)` takes: the cron expression, the data set's revision on the hub, both (whichever comes first)
    or None."""
    cron = CronTriggerTimetable(config.schedule.cron, timezone="UTC") if config.schedule.cron else None
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


def deadline_of(config: Config) -> DeadlineAlert | None:
    """What `DAG(deadline=...)` takes: a message when a run is not done schedule.deadline_hours after it was queued."""
    if config.schedule.deadline_hours is None:
        return None
    return DeadlineAlert(
        reference=DeadlineReference.DAGRUN_QUEUED_AT,
        interval=timedelta(hours=config.schedule.deadline_hours),
        callback=AsyncCallback(Webhook, kwargs={"text": LATE}),
    )
