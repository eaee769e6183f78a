"""Loaded before any test: isolates Airflow (see airflow_env.py) and offers its fixtures to every folder."""

from airflow_env import airflow_db, dags, stack

__all__ = ["airflow_db", "dags", "stack"]
