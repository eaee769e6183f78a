#!/usr/bin/env bash
# MLflow: an infinite metric comes back as a finite number.
#
# Version:  mlflow 3.17.2 (SQLite store)
# Guess:    inf is stored as inf, as NaN is stored as NaN.
# Seen:     inf is read back as 1.7976931348623157e+308 and -inf as its negative; math.isinf says False. NaN stays NaN, no filter of
#           search_runs finds it (neither < nor >=), and it is sorted last.
# Effect:   a check for finite values passes on a diverged run. Check before logging; Talaria stops a training at the first loss that
#           is not finite.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import math
from mlflow import MlflowClient

client = MlflowClient("sqlite:///runs.db")
experiment = client.create_experiment("finding")
for value in (0.5, math.inf, -math.inf, math.nan):
    client.log_metric(client.create_run(experiment).info.run_id, "loss", value)

def losses(condition="", order=None):
    return [run.data.metrics["loss"] for run in client.search_runs([experiment], condition, order_by=order)]

everything = losses(order=["metrics.loss ASC"])
print(everything)
assert everything[:3] == [-1.7976931348623157e308, 0.5, 1.7976931348623157e308] and math.isnan(everything[3])
assert not any(math.isinf(value) for value in everything)
assert len(losses("metrics.loss < 1000")) + len(losses("metrics.loss >= 1000")) == 3
PY
