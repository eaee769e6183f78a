"""Triggers: what runs in Airflow's triggerer."""
