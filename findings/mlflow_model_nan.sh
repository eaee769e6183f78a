#!/usr/bin/env bash
# MLflow: a model whose loss is NaN is found as the model with the lowest loss, 0.
#
# Version:  mlflow 3.17.2 (SQLite store, the same code behind the server)
# Guess:    a logged model's metrics are kept as a run's are: NaN stays NaN, no comparison holds for it, and it is ordered last.
# Seen:     search_runs does so. A NaN logged with model_id is read back from the model as 0.0; search_logged_models finds it with
#           "metrics.loss < 0.5" and "metrics.loss = 0", and puts it first when it orders by loss.
# Effect:   "the best model of the experiment" is the diverged one. Talaria gives a model its finite numbers only.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import math
import mlflow

mlflow.set_tracking_uri("sqlite:///runs.db")
for name, loss in {"good": 0.3, "bad": 2.0, "diverged": math.nan}.items():
    with mlflow.start_run(run_name=name):
        model = mlflow.initialize_logged_model(name=name)
        mlflow.log_metric("loss", loss)
        mlflow.log_metric("loss", loss, model_id=model.model_id)
        last = mlflow.get_logged_model(model.model_id).metrics[0].value
runs = lambda **search: list(mlflow.search_runs(**search)["tags.mlflow.runName"])
models = lambda **search: [model.name for model in mlflow.search_logged_models(output_format="list", **search)]
print("the diverged model's loss:", last)
below = runs(filter_string="metrics.loss < 0.5"), models(filter_string="metrics.loss < 0.5")
print("loss < 0.5: runs", below[0], "models", below[1])
best = runs(order_by=["metrics.loss ASC"]), models(order_by=[{"field_name": "metrics.loss", "ascending": True}])
print("by loss:    runs", best[0], "models", best[1])
assert last == 0.0
assert below[0] == ["good"] and set(below[1]) == {"good", "diverged"}
assert best == (["good", "bad", "diverged"], ["diverged", "good", "bad"])
assert models(filter_string="metrics.loss = 0") == ["diverged"]
PY
