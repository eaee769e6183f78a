"""Make the DAG `watch-champion`. Wiring only."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, get_current_context, task

from talaria_airflow.dag import tasks as dag_tasks
from talaria_airflow.dag.factory import CHAMPION
from talaria_airflow.dag.retry_policy import RETRIES
from talaria_airflow.notifiers.alert import Alert

EVERY_HALF_HOUR = "*/30 * * * *"


def watch_champion_dag(dag_id: str = "watch-champion", *, cron: str = EVERY_HALF_HOUR) -> DAG:
    """Return the DAG that tests served champions and rolls one back that has fallen.

    It is off until somebody switches it on. Then it runs by `cron`, and when a promoted version is served.
    """

    @dag(
        dag_id=dag_id,
        schedule=AssetOrTimeSchedule(timetable=CronTriggerTimetable(cron, timezone="UTC"), assets=[CHAMPION]),
        is_paused_upon_creation=True,
        catchup=False,
        max_active_runs=1,
        tags=["talaria", "registry"],
        params={
            "config": Param(
                None, type=["null", "string"], description="Configuration whose model is tested; absent: all with serving.url."
            )
        },
        default_args={
            "owner": "talaria",
            **RETRIES,
            "execution_timeout": timedelta(hours=2),
            "on_failure_callback": Alert("{{ dag.dag_id }} {{ run_id }} failed: {{ exception | default('see its log') }}"),
        },
    )
    def watch_champion() -> None:
        """Let each served champion answer a sample of its tasks (evaluate.tasks), and roll it back where it has fallen.

        A fall is a score that is lower by more than watch.margin than the best that the version, or the champion before it,
        reached on the same prompts. The reason is written on the version. docs/serving.md has the rest.
        """

        @task
        def served() -> list[str]:
            """Name the configurations whose model is served."""
            return dag_tasks.served_configs(get_current_context())

        @task
        def score(name: str) -> Any:
            return dag_tasks.watch(get_current_context(), name)

        score.expand(name=served())

    return watch_champion()
