"""Buttons on a task's page: the MLflow run, the model version, the training, the answers of an evaluation."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from airflow.sdk import BaseOperator, BaseOperatorLink, Context
from airflow.sdk.configuration import conf


class UrlLink(BaseOperatorLink):
    """An address that `show` has given to the task."""

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        return str(vars(operator).get(self.xcom_key, ""))


class MlflowRunLink(UrlLink):
    name = "MLflow run"


class ModelVersionLink(UrlLink):
    name = "Model version"


class TrainingPageLink(UrlLink):
    name = "Training page"


class AnswersLink(UrlLink):
    name = "Answers"


def show(context: Context, link: type[UrlLink], url: str) -> None:
    """Set the address of the running task's button.

    Airflow reads it from an XCom, which it writes itself when the task has ended, from `get_link`: too late for a task that
    runs for days, so it is written here as well.
    """
    task, key = context["task"], link().xcom_key
    if vars(task).get(key) != url:
        vars(task)[key] = url
        context["ti"].xcom_push(key=key, value=url)


def answers_page(key: str) -> str:
    """Return the address of the page with the answers of an evaluation, by its key."""
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/talaria/answers/{key}"


def training_page(context: Context) -> str:
    """Return the address of the page with the trainings of this DAG run."""
    query = urlencode({"dag_id": context["dag_run"].dag_id, "run_id": context["dag_run"].run_id})
    return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}/talaria/?{query}"
