"""The DAG `sft`, for any configuration, and one DAG `sft_NAME` for each configuration that has a schedule. Wiring only."""

from __future__ import annotations

import re

from airflow.sdk import DAG  # noqa: F401 (Airflow looks for the word in files that may hold a DAG)
from talaria_airflow import sft_dag
from talaria_airflow.dag.scheduling import scheduled_configs

sft_dag()
for name in scheduled_configs():
    sft_dag(name, dag_id="sft_" + re.sub(r"[^\w.-]", "_", name, flags=re.ASCII))
