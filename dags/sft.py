"""The DAG `sft`: from a chat data set to a registered, promoted model. Wiring only; the work is in pipeline/."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, Param, TaskGroup, dag, get_current_context, task
from talaria.config import load as settings
from talaria_airflow import dag_tasks
from talaria_airflow.notifiers.webhook import Webhook
from talaria_airflow.operators.accelerate_launch import AccelerateLaunchOperator
from talaria_airflow.operators.register import RegisterOperator
from talaria_airflow.operators.stage import StageOperator
from talaria_airflow.retry_policy import RETRIES
from talaria_airflow.scheduling import config_file, config_names, deadline_of, default_config, schedule_of

MESSAGES, TOKENS, MODEL = Asset("talaria-messages"), Asset("talaria-tokens"), Asset("talaria-model")
SCHEDULED = settings.load(config_file(default_config()))
SCHEDULE = schedule_of(SCHEDULED)

GPU: dict[str, Any] = {"pool": "gpu", "queue": "gpu"}
"""A slot of the pool is a node's accelerators; the queue is what Celery workers with accelerators serve."""
FORCE = "{{ params.force }}"
DECIDED = "sft {{ run_id }}: {{ ti.xcom_pull(task_ids=ti.task_id).reason }}"

NUMBERS = """{% set found = ti.xcom_pull('model.evaluate').facts %}
|               | base                         | candidate               |
| ------------- | ---------------------------- | ----------------------- |
| held-out loss | {{ found.base_heldout_loss }} | {{ found.heldout_loss }} |
| exact match   | {{ found.base_exact_match }}  | {{ found.exact_match }}  |

[The version in MLflow]({{ ti.xcom_pull('registry.register').model_url }})
"""


@dag(
    schedule=SCHEDULE,
    is_paused_upon_creation=SCHEDULE is not None,  # nothing starts by itself until somebody wants it to
    catchup=False,
    max_active_runs=1,
    deadline=deadline_of(SCHEDULED),
    tags=["talaria", "training"],
    params={
        "config": Param(default_config(), type="string", enum=config_names(), description="A file of configs/."),
        "set": Param({}, type="object", description='Settings to override, for example {"train.epochs": 1}.'),
        "force": Param(False, type="boolean", description="Make every stage again, and run even if nothing has changed."),
    },
    default_args={
        "owner": "talaria",
        **RETRIES,
        "execution_timeout": timedelta(hours=12),
        "on_failure_callback": Webhook("sft {{ run_id }}: {{ ti.task_id }} failed: {{ exception | default('see its log') }}"),
    },
)
def sft() -> None:
    """Fine-tune a chat model and promote it if it is better.

    data (download, convert, base, tokenize, report), model (train, evaluate), registry (register, promote). Every stage reuses
    the output of an earlier run with the same inputs and settings. `--conf '{"config": "tiny", "set": {"train.epochs": 1}}'`
    overrides settings; docs/configuration.md lists them, docs/orchestration.md explains the rest.
    """

    @task
    def configure() -> Any:
        """Validate the configuration; end the run as skipped where a scheduled one has nothing to do."""
        return dag_tasks.configure(get_current_context())

    config: Any = configure()

    def stage(name: str, inputs: Any, **options: Any) -> Any:
        return StageOperator(task_id=name, stage=name, config=config, inputs=inputs, force=FORCE, **options).output

    with TaskGroup("data"):
        download = stage("download", {})
        convert = stage("convert", {"download": download}, outlets=[MESSAGES])
        base = stage("base", {"convert": convert})

        @task
        def parts(config: Any, upstream: Any) -> Any:
            """Row ranges to tokenise side by side (tokenize.shards); none where one process does it all."""
            return dag_tasks.parts_to_do(config, upstream)

        @task
        def tokenize_part(part: Any, config: Any, upstream: Any) -> None:
            dag_tasks.tokenize_part(config, upstream, part)

        @task(outlets=[TOKENS], trigger_rule="none_failed_min_one_success")
        def tokenize(config: Any, upstream: Any) -> Any:
            return dag_tasks.tokenize(config, upstream, TOKENS)

        texts = {"convert": convert, "base": base}
        ranges = tokenize_part.partial(config=config, upstream=texts).expand(part=parts(config, texts))
        ranges >> (tokens := tokenize(config, texts))
        report = stage("report", {"download": download, "convert": convert, "tokenize": tokens})

    with TaskGroup("model"):
        ready = {"tokenize": tokens, "base": base}
        train = AccelerateLaunchOperator(
            task_id="train",
            config=config,
            inputs=ready,
            force=FORCE,
            **GPU,
            retries=5,
            execution_timeout=timedelta(days=14),
        ).output
        evaluate = stage("evaluate", {"train": train, **ready}, **GPU)

    with TaskGroup("registry"):
        made = {"download": download, "convert": convert, "report": report, **ready, "train": train, "evaluate": evaluate}
        registered = RegisterOperator(task_id="register", config=config, inputs=made, outlets=[MODEL]).output

        @task.branch
        def gate(config: Any) -> str:
            """Ask a person first where promote.approval says so."""
            return "registry.approve" if config["promote"]["approval"] else "registry.promote"

        @task(trigger_rule="none_failed_min_one_success", on_success_callback=Webhook(DECIDED))
        def promote(config: Any, registered: Any) -> Any:
            """Give the candidate the alias champion if it beats the base model and the champion, else challenger."""
            return dag_tasks.promote(config, registered)

        approve = ApprovalOperator(
            task_id="approve",
            subject="Promote {{ ti.xcom_pull('registry.register').model }} {{ ti.xcom_pull('registry.register').candidate }}?",
            body=NUMBERS,
            defaults="Reject",
            response_timeout=timedelta(days=7),
            execution_timeout=None,
            notifiers=[Webhook("sft {{ run_id }} waits for approval: {{ ti.log_url }}")],
        )
        promoted = promote(config, registered)
        registered >> gate(config) >> [approve, promoted]
        approve >> promoted


sft()
