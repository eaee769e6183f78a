"""Make the DAG `sweep`: trials as mapped tasks, the best through the same tasks as a training of `sft`. Wiring only."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, TaskGroup, get_current_context, task
from airflow.sdk.definitions.param import ParamsDict
from talaria.config.schema import Config

from talaria_airflow.dag import tasks as dag_tasks
from talaria_airflow.dag.factory import ACTIVE_RUNS, data_tasks, evaluate_task, registry_tasks, task_defaults
from talaria_airflow.dag.scheduling import default_config
from talaria_airflow.operators.sweep_trial import NAME, SweepTrialOperator
from talaria_airflow.parameters.form import run_parameters

DOC = """Train with several settings on one data revision, and give the best to the gate.

data (as in sft), trials (the references, which never stop early, then those that are compared with them), choose, and model and
registry groups of sft for the best. The section `sweep` of the configuration says what is tried, or
`--conf '{"config": "tiny", "set": {"sweep.values": {"train.lr": [0.001, 0.003]}}}'`; docs/sweeps.md explains it.
"""


def sweep_dag(dag_id: str = "sweep", *, owner: str = "talaria", pool: str = "gpu", queue: str = "gpu") -> DAG:
    """Return the DAG that runs a sweep of any configuration, when somebody triggers it.

    :param pool: its slots are taken by trials, evaluation and comparison: with one slot, one trial trains at a time.
    """
    channels = Config(name="any").alerts.model_dump()
    gpu = {"pool": pool, "queue": queue}
    with DAG(
        dag_id,
        description="A sweep of any configuration, when somebody triggers it.",
        doc_md=DOC,
        schedule=None,
        is_paused_upon_creation=False,
        catchup=False,
        max_active_runs=ACTIVE_RUNS,
        tags=["talaria", "training"],
        default_args=task_defaults(owner, channels),
    ) as dag:
        _tasks(gpu, channels)
    dag.params = ParamsDict(run_parameters(default_config(), fixed=False, sweeps=True))  # after the tasks, as sft_dag explains
    return dag


def _tasks(gpu: dict[str, Any], channels: dict[str, Any]) -> None:
    @task
    def configure() -> Any:
        """Validate the configuration and its sweep."""
        return dag_tasks.configure_sweep(get_current_context())

    config: Any = configure()
    made = data_tasks(config)
    ready = {"tokenize": made["tokenize"], "base": made["base"]}

    @task
    def plan(config: Any, upstream: Any) -> Any:
        """Open the sweep's run in MLflow, and list its references."""
        dag_tasks.open_sweep(config, upstream)
        return dag_tasks.trials(config, references=True)

    @task
    def plan_compared(config: Any) -> Any:
        """List the trials that are compared with the references."""
        return dag_tasks.trials(config, references=False)

    with TaskGroup("trials"):
        options = {
            "config": config,
            "inputs": ready,
            "channels": channels,
            "retries": 5,
            "execution_timeout": timedelta(days=14),
            "trigger_rule": "none_failed",  # there may be no references, or nothing but references
            "map_index_template": f"{{{{ {NAME} }}}}",
            **gpu,
        }
        references = SweepTrialOperator.partial(task_id="reference", **options).expand(trial=plan(config, ready))
        compared = SweepTrialOperator.partial(task_id="compared", references=references.output, **options)
        others = compared.expand(trial=plan_compared(config))

    @task(multiple_outputs=True, trigger_rule="none_failed")
    def choose(config: Any, upstream: Any, references: Any, others: Any) -> Any:
        """Find the best trial, and draw them all in MLflow."""
        return dag_tasks.choose(config, upstream, references, others)

    best: Any = choose(config, ready, references.output, others.output)
    with TaskGroup("model"):
        evaluate = evaluate_task(best["config"], {"train": best["train"], **ready, "convert": made["convert"]}, gpu)
    registry_tasks(best["config"], {**made, "train": best["train"], "evaluate": evaluate}, gpu, channels)
