"""The DAG `sft`: from a chat data set to a registered, promoted model. Wiring only; the work is in pipeline/."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import Asset, Param, TaskGroup, dag, get_current_context, task

from pipeline import config as settings
from plugins import stage_tasks
from plugins.notifiers.webhook import Webhook
from plugins.policy import RETRIES
from plugins.scheduling import config_file, config_names, deadline_of, default_config, schedule_of

MESSAGES, TOKENS, MODEL = Asset("talaria-messages"), Asset("talaria-tokens"), Asset("talaria-model")
SCHEDULED = settings.load(config_file(default_config()))

DECIDED = "sft {{ run_id }}: {{ ti.xcom_pull(task_ids=ti.task_id).reason }}"


@dag(
    schedule=schedule_of(SCHEDULED),
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
        return stage_tasks.configure(get_current_context())

    config = configure()

    def stage(name: str, asset: Asset | None = None, **upstream: Any) -> Any:
        @task(task_id=name, outlets=[asset] if asset else [])
        def run(config: Any, upstream: Any) -> Any:
            return stage_tasks.stage(name, config, upstream, asset)

        return run(config, upstream)

    with TaskGroup("data"):
        download = stage("download")
        convert = stage("convert", MESSAGES, download=download)
        base = stage("base", convert=convert)

        @task
        def parts(config: Any, upstream: Any) -> Any:
            """Row ranges to tokenise side by side (tokenize.shards); none where one process does it all."""
            return stage_tasks.parts_to_do(config, upstream)

        @task
        def tokenize_part(part: Any, config: Any, upstream: Any) -> None:
            stage_tasks.tokenize_part(config, upstream, part)

        @task(outlets=[TOKENS], trigger_rule="none_failed_min_one_success")
        def tokenize(config: Any, upstream: Any) -> Any:
            return stage_tasks.tokenize(config, upstream, TOKENS)

        texts = {"convert": convert, "base": base}
        ranges = tokenize_part.partial(config=config, upstream=texts).expand(part=parts(config, texts))
        ranges >> (tokens := tokenize(config, texts))
        stage("report", download=download, convert=convert, tokenize=tokens)

    with TaskGroup("model"):
        train = stage("train", tokenize=tokens, base=base)
        evaluate = stage("evaluate", train=train, tokenize=tokens, base=base)

    with TaskGroup("registry"):

        @task(outlets=[MODEL])
        def register(config: Any, upstream: Any) -> Any:
            """Make every kept checkpoint a model version."""
            return stage_tasks.register(config, upstream, MODEL)

        @task.branch
        def gate(config: Any) -> str:
            """Ask a person first where promote.approval says so."""
            return "registry.approve" if config["promote"]["approval"] else "registry.promote"

        @task(trigger_rule="none_failed_min_one_success", on_success_callback=Webhook(DECIDED))
        def promote(config: Any, registered: Any) -> Any:
            """Give the candidate the alias champion if it beats the base model and the champion, else challenger."""
            return stage_tasks.promote(config, registered)

        approve = ApprovalOperator(
            task_id="approve",
            subject="Promote {{ ti.xcom_pull('registry.register').model }} {{ ti.xcom_pull('registry.register').candidate }}?",
            body="{{ ti.xcom_pull('model.evaluate').facts | tojson }}",
            defaults="Reject",
            response_timeout=timedelta(days=7),
            execution_timeout=None,
            notifiers=[Webhook("sft {{ run_id }} waits for approval: {{ ti.log_url }}")],
        )
        made = {"download": download, "convert": convert, "base": base, "tokenize": tokens, "train": train, "evaluate": evaluate}
        registered = register(config, made)
        promoted = promote(config, registered)
        registered >> gate(config) >> [approve, promoted]
        approve >> promoted


sft()
