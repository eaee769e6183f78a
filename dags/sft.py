"""The DAG `sft`, for any configuration, and one DAG `sft_NAME` for each configuration that has a schedule."""

from talaria_airflow import sft_dags

sft_dags()
