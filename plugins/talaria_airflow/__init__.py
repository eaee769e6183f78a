"""Talaria in Airflow: `sft_dag` makes a DAG, the rest is what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from talaria_airflow.dag.factory import sft_dag as sft_dag

__all__ = ["sft_dag"]


def __getattr__(name: str) -> Any:
    """Import on first use: every Airflow process imports this package for its plugin, few make a DAG."""
    if name == "sft_dag":
        from talaria_airflow.dag.factory import sft_dag

        return sft_dag
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
