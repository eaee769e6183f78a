"""The MLflow run of a training, beside it and never in its way. Start reading at `tracker`.

`tracker` sends what the trainer writes, in a thread of the launcher; `run_log` is the run of one training folder, found again
whatever happens; `lineage` says what a model came from, `system_metrics` what it costs; `mlflow_client` is how MLflow is reached.
Nothing here knows of versions or aliases: talaria.registry does, and imports this.
"""
