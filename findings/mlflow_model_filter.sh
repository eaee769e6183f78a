#!/usr/bin/env bash
# MLflow: a model is found by any value that a metric of it ever had, not by the latest.
#
# Version:  mlflow 3.17.2 (SQLite store, the same code behind the server)
# Guess:    search_logged_models compares the latest value, as search_runs does, and as its own order_by does.
# Seen:     a model whose loss rose from 0.2 to 0.9 is found with "metrics.loss < 0.5" and with "metrics.loss > 0.5"; so is one that
#           a second run measured as worse. Ordered by loss it stands where its latest value belongs.
# Effect:   a gate or a report that asks for models below a loss gets those that were below it once. Talaria logs each number of a
#           version once, and decides by the version's tags.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import mlflow

mlflow.set_tracking_uri("sqlite:///runs.db")
for name, losses in {"falling": (2.0, 0.3), "rising": (0.2, 0.9)}.items():
    with mlflow.start_run(run_name=name):
        model = mlflow.initialize_logged_model(name=name)
        for step, loss in enumerate(losses):
            mlflow.log_metric("loss", loss, step=step)
            mlflow.log_metric("loss", loss, step=step, model_id=model.model_id)
runs = lambda query: list(mlflow.search_runs(filter_string=query)["tags.mlflow.runName"])
models = lambda query: sorted(model.name for model in mlflow.search_logged_models(filter_string=query, output_format="list"))
for query, expected in {"metrics.loss < 0.5": ["falling"], "metrics.loss > 0.5": ["rising"]}.items():
    print(f"{query}: runs {runs(query)}, models {models(query)}")
    assert runs(query) == expected
    assert models(query) == ["falling", "rising"]
order = [{"field_name": "metrics.loss", "ascending": True}]
by_loss = [model.name for model in mlflow.search_logged_models(order_by=order, output_format="list")]
print("models by loss:", by_loss)
assert by_loss == ["falling", "rising"]
PY
