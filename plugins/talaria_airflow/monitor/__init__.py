"""The page Training: its server, what it asks Airflow and MLflow, and the static files."""
