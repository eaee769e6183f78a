"""The MLflow run of a training, beside it and never in its way. Start reading at `tracker`.

`tracker` sends what the trainer writes, in a thread of the launcher; `run` is the run of one training folder, found again
whatever happens; `lineage` says what a model came from, `energy` what it costs; `artifacts` and `plots` are the files for
people; `access` is how MLflow is reached. Nothing here knows of versions or aliases: talaria.registry does, and imports this.
"""
