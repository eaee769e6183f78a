"""The DAG `rollback`: give the champion alias back to the previous champion."""

from talaria_airflow import rollback_dag

rollback_dag()
