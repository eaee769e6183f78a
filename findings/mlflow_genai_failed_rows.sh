#!/usr/bin/env bash
# mlflow.genai.evaluate: rows whose scorer fails are left out of the mean, and the run is FINISHED.
#
# Version:  mlflow 3.17.2
# Guess:    a scorer that raises on 9 of 10 rows ends the evaluation, or counts as 0, or the metric is missing.
# Seen:     the mean is taken over the rows that worked: 1.0 from one right answer, while the judge was down for the nine others. The run
#           is FINISHED. A scorer that returns None gives the same; one that returns NaN makes the mean NaN.
# Effect:   a gate on `<scorer>/mean` passes when the judge is down. Count the scored rows in the traces as well, or let the scorer
#           return 0 for an error.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
export MLFLOW_MODEL_CATALOG_URI=
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import math
import mlflow
from mlflow.genai.scorers import scorer

mlflow.set_tracking_uri("sqlite:///runs.db")
mlflow.set_experiment("finding")
rows = [{"inputs": {"question": str(i)}, "outputs": "right" if i == 0 else "unscored"} for i in range(10)]

@scorer
def raises(outputs):
    if outputs == "unscored":
        raise RuntimeError("the judge does not answer")
    return True

@scorer
def none(outputs):
    return None if outputs == "unscored" else 1.0

@scorer
def nan(outputs):
    return math.nan if outputs == "unscored" else 1.0

found = mlflow.genai.evaluate(data=rows, scorers=[raises, none, nan])
status = mlflow.get_run(found.run_id).info.status
print(found.metrics, status)
assert found.metrics["raises/mean"] == found.metrics["none/mean"] == 1.0
assert math.isnan(found.metrics["nan/mean"])
assert status == "FINISHED"
PY
