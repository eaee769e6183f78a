"""Talaria in Airflow: `sft_dags` makes the training DAGs of all configurations, each other function the DAG of its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from talaria import __version__ as __version__

if TYPE_CHECKING:
    from talaria_airflow.dag.factory import sft_dag as sft_dag
    from talaria_airflow.dag.factory import sft_dags as sft_dags
    from talaria_airflow.dag.rollback import rollback_dag as rollback_dag
    from talaria_airflow.dag.sweep import sweep_dag as sweep_dag
    from talaria_airflow.dag.watch_champion import watch_champion_dag as watch_champion_dag

__all__ = ["rollback_dag", "sft_dag", "sft_dags", "sweep_dag", "watch_champion_dag"]


def __getattr__(name: str) -> Any:
    """Import on first use: every Airflow process imports this package for its plugin, few make a DAG."""
    if name in ("sft_dag", "sft_dags"):
        from talaria_airflow.dag import factory

        return getattr(factory, name)
    if name == "rollback_dag":
        from talaria_airflow.dag.rollback import rollback_dag

        return rollback_dag
    if name == "sweep_dag":
        from talaria_airflow.dag.sweep import sweep_dag

        return sweep_dag
    if name == "watch_champion_dag":
        from talaria_airflow.dag.watch_champion import watch_champion_dag

        return watch_champion_dag
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
