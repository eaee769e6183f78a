"""Settings of what is around a training: the registry, serving, schedules and who is told."""

from __future__ import annotations

from typing import Annotated, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, model_validator

from talaria.config.names import check_experiment, check_model
from talaria.config.section import YEAR_SECONDS, Section


class Registry(Section):
    model: Annotated[str, AfterValidator(check_model)] | None = Field(
        None, description="Registered model's name; absent: the configuration's name. Dots become dashes, which MLflow requires."
    )
    experiment: Annotated[str, AfterValidator(check_experiment)] = Field("talaria", description="MLflow experiment.")
    artifacts: Literal["store", "server"] = Field(
        "store",
        description="Where a new experiment keeps its files: on the store's disk (no copy of the weights), or with the server.",
    )
    gpu_hour_price: float | None = Field(None, ge=0, description="Price of one GPU for an hour, in your currency.")
    license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.+-]*$",
        description="Licence of the models, as the hub writes it (apache-2.0), for `talaria publish`; absent: the base model's.",
    )


class Serving(Section):
    """Where the champion is served, for the DAGs (Airflow only)."""

    url: str | None = Field(
        None,
        pattern=r"^https?://[^\s/@?#]+(/[^\s@?#]*)?$",
        description="Address of `talaria serve` without /v1: http://127.0.0.1:8000; absent: no DAG waits for a server.",
    )
    swap_seconds: float = Field(
        900.0, ge=0, le=86_400, description="Seconds in which the server should have taken up a promoted version."
    )


class Watch(Section):
    """When the DAG watch-champion rolls a served champion back (Airflow only)."""

    sample: int = Field(50, ge=1, le=100_000, description="Prompts of each of evaluate.tasks that the served champion answers.")
    margin: float = Field(0.1, ge=0, le=1, description="A score that is lower by more than this is a fall, and is rolled back.")


class Schedule(Section):
    cron: str | None = Field(None, description="Cron expression for scheduled retraining.")
    timezone: str = Field("UTC", description="Time zone of the cron expression, as IANA names it, for example Europe/Berlin.")
    on_new_revision: bool = Field(False, description="Start a run when the data set's revision on the hub changes.")
    poll_seconds: float = Field(300.0, ge=1, le=86_400, description="Seconds between checks of the hub.")
    skip_unchanged: bool = Field(
        True, description="Skip a scheduled run whose data, model and settings the champion already has."
    )
    deadline_hours: float | None = Field(
        None, gt=0, le=YEAR_SECONDS / 3600, description="Report a run that is not done this long after it was queued."
    )
    monthly_budget: float | None = Field(
        None, ge=0, description="Skip scheduled runs once this model's trainings of the last 30 days cost so much."
    )
    owner: str = Field("talaria", min_length=1, description="Owner of the configuration's own DAG.")
    pool: str = Field("gpu", min_length=1, description="Airflow pool whose slots its training and evaluation take.")
    queue: str = Field("gpu", min_length=1, description="Celery queue of the workers that serve them.")

    @model_validator(mode="after")
    def _can_be_kept(self) -> Schedule:
        try:
            ZoneInfo(self.timezone)
        except (ValueError, OSError, KeyError):  # a path, a folder of zones, ZoneInfoNotFoundError
            raise ValueError(f"schedule.timezone {self.timezone!r} is no time zone; write for example Europe/Berlin") from None
        return self


class Alerts(Section):
    """Who hears of failures, questions, decisions and of a training in trouble (Airflow only)."""

    webhook: str | None = Field(
        None, description="Airflow connection whose password is the webhook's address; absent: TALARIA_WEBHOOK."
    )
    email: str | None = Field(None, description="Recipients of e-mail, separated by commas.")
    smtp: str = Field("smtp_default", min_length=1, description="Airflow connection of the mail server.")
    stall_seconds: float = Field(300.0, gt=0, le=YEAR_SECONDS, description="Tell when a training has made no step for so long.")
    patience: int = Field(5, ge=1, le=10_000, description="Tell when so many held-out losses in a row were no better.")
    free_disk_fraction: float = Field(
        0.05, ge=0, lt=1, description="Tell when less than this share of the store's disk is free while a model trains."
    )
