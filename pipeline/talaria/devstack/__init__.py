"""Airflow and MLflow on one machine, without containers: `make up`, `make demo`, `make down`."""
