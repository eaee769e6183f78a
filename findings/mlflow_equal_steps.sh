#!/usr/bin/env bash
# MLflow: of values logged at one step and in one millisecond, the largest is the latest.
#
# Version:  mlflow 3.17.2 (SQLite store, the same code behind the server)
# Guess:    the latest value of a metric is the one that was logged last.
# Seen:     it is the one of the highest step, then of the latest millisecond, then the largest. Without a step each value is of step 0, and
#           a loop of fast evaluations logs several in one millisecond: of the losses 0.9, 0.5, 0.2 a run shows 0.9. A correction of an
#           accuracy from 0.8 to 0.7, logged with the first one's step and timestamp, does nothing. The history has all values.
# Effect:   search_runs, its order and the list of runs show a value that is neither the last nor the best. Give each value a step of its own.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from mlflow import MlflowClient
from mlflow.entities import Metric

client = MlflowClient("sqlite:///runs.db")
run = client.create_run("0").info.run_id
shown = lambda: client.get_run(run).data.metrics
for loss in (0.9, 0.5, 0.2):
    client.log_metric(run, "loss", loss, timestamp=1_000)
for accuracy in (0.8, 0.7):
    client.log_batch(run, metrics=[Metric("accuracy", accuracy, timestamp=1_000, step=10)])
print("latest:", shown(), "history of the loss:", [metric.value for metric in client.get_metric_history(run, "loss")])
assert shown() == {"loss": 0.9, "accuracy": 0.8}
assert sorted(metric.value for metric in client.get_metric_history(run, "loss")) == [0.2, 0.5, 0.9]
assert not client.search_runs(["0"], "metrics.loss < 0.5")
client.log_metric(run, "loss", 0.2, timestamp=1_000, step=1)
print("with a step of its own:", shown()["loss"])
assert shown()["loss"] == 0.2
PY
