"""The DAG `watch-champion`: test the served champion, and roll it back where it has fallen."""

from talaria_airflow import watch_champion_dag

watch_champion_dag()
