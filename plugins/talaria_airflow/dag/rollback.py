"""Make the DAG `rollback`. Wiring only."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, dag, get_current_context, task

from talaria_airflow.dag import tasks as dag_tasks
from talaria_airflow.dag.retry_policy import RETRIES
from talaria_airflow.notifiers.alert import Alert


def rollback_dag(dag_id: str = "rollback") -> DAG:
    """Return the DAG that gives the alias `champion` of a model back to the version that had it before."""

    @dag(
        dag_id=dag_id,
        schedule=None,
        is_paused_upon_creation=False,
        catchup=False,
        max_active_runs=1,
        tags=["talaria", "registry"],
        params={
            "model": Param(type="string", minLength=1, description="Name of the registered model."),
            "reason": Param(type="string", minLength=1, description="Why; it is written on the version."),
        },
        default_args={
            "owner": "talaria",
            **RETRIES,
            "execution_timeout": timedelta(minutes=10),
            "on_failure_callback": Alert("rollback {{ run_id }} failed: {{ exception | default('see its log') }}"),
        },
    )
    def rollback() -> None:
        """Move the alias `champion` of a model to the version that had it before.

        Who, when and why are written on the versions and in MLflow. A retry of the same run moves nothing twice.
        """

        @task(on_success_callback=Alert("{{ params.model }} rolled back: {{ params.reason }}"))
        def move_champion_back() -> Any:
            return dag_tasks.rollback(get_current_context())

        move_champion_back()

    return rollback()
