#!/usr/bin/env bash
# MLflow: restoring a deleted experiment restores runs that were deleted one by one before.
#
# Version:  mlflow 3.17.2 (SQLite store, the same code behind the server)
# Guess:    delete_experiment and restore_experiment are inverse: what was deleted before stays deleted.
# Seen:     deleting an experiment marks its runs as deleted, and restoring it marks all of its runs as active, also those that delete_run
#           had removed long before. Nothing tells the two apart afterwards.
# Effect:   failed or withdrawn runs are back in search_runs, and so in reports and sweeps that take the best. Run `mlflow gc` before, or
#           tag runs instead of deleting them.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from mlflow import MlflowClient

client = MlflowClient("sqlite:///runs.db")
experiment = client.create_experiment("tuning")
for name, loss in {"kept": 0.5, "withdrawn": 0.1}.items():
    run = client.create_run(experiment, run_name=name)
    client.log_metric(run.info.run_id, "loss", loss)
client.delete_run(run.info.run_id)
best_first = lambda: [run.info.run_name for run in client.search_runs([experiment], order_by=["metrics.loss"])]
print("after delete_run:", best_first())
assert best_first() == ["kept"]
client.delete_experiment(experiment)
client.restore_experiment(experiment)
print("after delete_experiment and restore_experiment:", best_first())
assert best_first() == ["withdrawn", "kept"]
PY
