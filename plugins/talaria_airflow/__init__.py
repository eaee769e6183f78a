"""Talaria in Airflow: operators, triggers, notifiers, the Training page. It wires functions of `talaria` and adds no logic."""
