"""The DAG `sweep`: train with several settings, and give the best to the gate."""

from talaria_airflow import sweep_dag

sweep_dag()
