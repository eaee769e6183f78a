"""Make a DAG that goes from a chat data set to a registered, promoted model. Wiring only; the work is in pipeline/."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Asset, TaskGroup, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict
from talaria.config import load as settings
from talaria.config.folder import config_file
from talaria.config.schema import Config

from talaria_airflow.dag import tasks as dag_tasks
from talaria_airflow.dag.retry_policy import RETRIES
from talaria_airflow.dag.scheduling import deadline_of, default_config, schedule_of, scheduled_configs
from talaria_airflow.notifiers.alert import Alert
from talaria_airflow.operators.accelerate_launch import AccelerateLaunchOperator
from talaria_airflow.operators.approval import AskOperator, CompareOperator
from talaria_airflow.operators.register import BY_DATA, RegisterOperator
from talaria_airflow.operators.stage import EvaluateOperator, StageOperator, TokenizeOperator
from talaria_airflow.parameters.form import run_parameters

MESSAGES, TOKENS, MODEL = Asset("talaria-messages"), Asset("talaria-tokens"), Asset("talaria-model")
CHAMPION = Asset("talaria-champion")
"""A version that was promoted and is served."""
MODEL_BY_DATA = Asset(BY_DATA)
ACTIVE_RUNS = 16
"""Runs at a time. The pool lets one at a time train; the others can be refused, prepare data, or wait for a person."""
FORCE = "{{ params.get('force', false) }}"
DECIDED = "{{ dag.dag_id }} {{ run_id }}: {{ ti.xcom_pull(task_ids=ti.task_id).reason }}"
FAILED = "{{ dag.dag_id }} {{ run_id }}: {{ ti.task_id }} failed: {{ exception | default('see its log') }}"
FROM_CONFIG: Any = object()

DOC = """Fine-tune a chat model and promote it if it is better.

data (download, convert, base, tokenize, report), model (train, evaluate), registry (register, compare, promote, swapped).
Every stage reuses the output of an earlier run with the same inputs and settings. `--conf '{"train.epochs": 1}'`, or the
form, overrides settings; docs/configuration.md lists them, docs/orchestration.md explains the rest.
"""


def sft_dag(
    config: str | None = None,
    *,
    dag_id: str = "sft",
    schedule: Any = FROM_CONFIG,
    owner: str | None = None,
    pool: str | None = None,
    queue: str | None = None,
) -> DAG:
    """Return a DAG that trains one configuration, or, without `config`, any that a run names.

    :param config: name of a file in the configuration folder; its section `schedule` has the defaults of what follows, and its
        section `alerts` the channels.
    :param schedule: anything that Airflow takes; absent: the configuration's own.
    :param pool: its slots are taken by training, evaluation and comparison; one slot is a node's accelerators.
    :param queue: what Celery workers with accelerators serve.

    A DAG with a schedule is off until somebody switches it on; Airflow looks at that once, when it first sees the `dag_id`, so
    give a DAG that gets a schedule later a new one. Raises ConfigError for a configuration that does not validate.
    """
    chosen = settings.load(config_file(config)) if config else None
    own = (chosen or Config(name="any")).schedule
    if schedule is FROM_CONFIG:
        schedule = schedule_of(chosen) if chosen else None
    channels = (chosen or Config(name="any")).alerts.model_dump()
    with DAG(
        dag_id,
        description=f"Configuration {config}." if config else "Any configuration, when somebody triggers it.",
        doc_md=DOC,
        schedule=schedule,
        is_paused_upon_creation=schedule is not None,  # nothing starts by itself until somebody wants it to
        catchup=False,
        max_active_runs=ACTIVE_RUNS,
        deadline=deadline_of(chosen) if chosen else None,
        tags=["talaria", "training"],
        default_args=task_defaults(owner or own.owner, channels),
    ) as dag:
        _tasks(config, {"pool": pool or own.pool, "queue": queue or own.queue}, channels)
    # after the tasks: Airflow stores a copy of the DAG's parameters with each task that it finds them at, 0.5 MB in all
    dag.params = ParamsDict(run_parameters(config or default_config(), fixed=config is not None))
    return dag


def task_defaults(owner: str, channels: Mapping[str, Any]) -> dict[str, Any]:
    """Return what all tasks of a DAG that trains have in common."""
    return {
        "owner": owner,
        **RETRIES,
        "execution_timeout": timedelta(hours=12),
        "weight_rule": "upstream",  # of several runs, the one that is further on goes first
        "on_failure_callback": Alert(FAILED, channels),
    }


def _tasks(name: str | None, gpu: Mapping[str, Any], channels: Mapping[str, Any]) -> None:
    """Wire the tasks of the DAG that is being made."""

    @task
    def configure() -> Any:
        """Validate the configuration; end the run as skipped where a scheduled one has nothing to do."""
        return dag_tasks.configure(get_current_context(), name)

    config: Any = configure()
    made = data_tasks(config)
    ready = {"tokenize": made["tokenize"], "base": made["base"]}
    with TaskGroup("model"):
        train = AccelerateLaunchOperator(
            task_id="train",
            config=config,
            inputs=ready,
            force=FORCE,
            channels=channels,
            retries=5,
            execution_timeout=timedelta(days=14),
            **gpu,
        ).output
        evaluate = evaluate_task(config, {"train": train, **ready, "convert": made["convert"]}, gpu)
    registry_tasks(config, {**made, "train": train, "evaluate": evaluate}, gpu, channels)


def sft_dags() -> list[DAG]:
    """Return the DAG `sft`, for any configuration, and one DAG `sft_NAME` for each configuration that has a schedule."""
    scheduled = scheduled_configs()
    return [sft_dag(), *(sft_dag(name, dag_id="sft_" + re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)) for name in scheduled)]


def stage_task(name: str, config: Any, inputs: Mapping[str, Any], **options: Any) -> Any:
    return StageOperator(task_id=name, stage=name, config=config, inputs=inputs, force=FORCE, **options).output


def evaluate_task(config: Any, inputs: Mapping[str, Any], gpu: Mapping[str, Any]) -> Any:
    return EvaluateOperator(task_id="evaluate", config=config, inputs=inputs, force=FORCE, **gpu).output


def data_tasks(config: Any) -> dict[str, Any]:
    """Wire the stages that need no accelerator. Returns stage -> its task's output."""
    with TaskGroup("data"):
        download = stage_task("download", config, {})
        convert = stage_task(
            "convert", config, {"download": download}, outlets=[MESSAGES], trigger_rule="none_failed_min_one_success"
        )
        _convert_parts(config, {"download": download}) >> convert
        base = stage_task("base", config, {"convert": convert})

        @task
        def parts(config: Any, upstream: Any) -> Any:
            """Row ranges to tokenise side by side (tokenize.shards); none where one process does it all."""
            return dag_tasks.parts_to_do(config, upstream)

        @task
        def tokenize_part(part: Any, config: Any, upstream: Any) -> None:
            dag_tasks.tokenize_part(config, upstream, part)

        texts = {"convert": convert, "base": base}
        ranges = tokenize_part.partial(config=config, upstream=texts).expand(part=parts(config, texts))
        joined: dict[str, Any] = {"outlets": [TOKENS], "trigger_rule": "none_failed_min_one_success"}
        tokenize = TokenizeOperator(task_id="tokenize", config=config, inputs=texts, force=FORCE, **joined)
        ranges >> tokenize
        tokens = tokenize.output
        report = stage_task("report", config, {"download": download, "convert": convert, "tokenize": tokens})
    return {"download": download, "convert": convert, "base": base, "tokenize": tokens, "report": report}


def _convert_parts(config: Any, raw: Mapping[str, Any]) -> Any:
    """Wire what convert.shards adds before the stage `convert`, which joins the parts. Returns the last of its tasks."""

    @task
    def convert_parts(config: Any, upstream: Any) -> Any:
        """Parts to convert side by side (convert.shards); none where one process does it all."""
        return dag_tasks.parts_to_convert(config, upstream)

    @task
    def find_columns(part: Any, config: Any, upstream: Any) -> None:
        dag_tasks.find_columns(config, upstream, part)

    @task
    def convert_part(part: Any, config: Any, upstream: Any) -> None:
        dag_tasks.convert_part(config, upstream, part)

    parts = convert_parts(config, raw)
    columns = find_columns.partial(config=config, upstream=raw).expand(part=parts)
    converted = convert_part.partial(config=config, upstream=raw).expand(part=parts)
    columns >> converted
    return converted


def registry_tasks(config: Any, made: Mapping[str, Any], gpu: Mapping[str, Any], channels: Mapping[str, Any]) -> None:
    """Wire what follows a trained model: versions, the gate's numbers, a person's answer where one is asked for, the alias."""
    with TaskGroup("registry"):
        registered = RegisterOperator(task_id="register", config=config, inputs=made, outlets=[MODEL, MODEL_BY_DATA]).output
        compared = CompareOperator(
            task_id="compare", config=config, registered=registered, evaluated=made["evaluate"], **gpu
        ).output

        @task.branch
        def gate(config: Any, compared: Any) -> str:
            """Ask a person first where promote.approval says so and there is something to decide."""
            return "registry.approve" if dag_tasks.has_to_be_asked(config, compared) else "registry.promote"

        approve = AskOperator(task_id="approve", compared=compared, channels=channels)

        @task(trigger_rule="none_failed_min_one_success", on_success_callback=Alert(DECIDED, channels))
        def promote(config: Any, registered: Any, answer: Any) -> Any:
            """Give the candidate the alias champion if it beats the base model and the champion, else challenger."""
            return dag_tasks.promote(config, registered, answer, get_current_context())

        @task(outlets=[CHAMPION], execution_timeout=None)
        def swapped(config: Any, promoted: Any) -> Any:
            """Wait until the new champion is served; skipped where none is, or nothing is served (serving.url)."""
            return dag_tasks.wait_for_swap(config, promoted)

        promoted = promote(config, registered, approve.output)
        gate(config, compared) >> [approve, promoted]
        swapped(config, promoted)
