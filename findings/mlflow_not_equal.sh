#!/usr/bin/env bash
# MLflow: a search for what is not archived finds nothing that was never marked, in each kind of search.
#
# Versions: mlflow 3.17.2
# Guess:    "tags.archived != 'true'" is all but the archived, so also what has no such tag; otherwise "or" could add these.
# Seen:     runs, registered models, versions, logged models and experiments without the tag are left out; "metrics.loss != 0.5" leaves out runs
#           without a loss, and finds one whose loss is NaN. The language has no "or"; for runs a second search
#           with "tags.archived IS NULL" finds the others.
# Effect:   a clean-up or a dashboard that hides what is archived shows no new version until somebody marks it archived=false. Give each version the
#           tag, or compare in Python.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import mlflow
from mlflow.exceptions import MlflowException

mlflow.set_tracking_uri("sqlite:///mlflow.db")
client = mlflow.MlflowClient()
NOT_ARCHIVED, MARKS = "tags.archived != 'true'", {"archived": {"archived": "true"}, "never marked": {}, "kept": {"archived": "false"}}
experiment = client.create_experiment("runs")
client.create_registered_model("versions")
for name, tags in MARKS.items():
    client.create_experiment(name, tags=tags)
    client.create_registered_model(name, tags=tags)
    client.create_logged_model(experiment, name=name.replace(" ", "-"), tags=tags)
    client.create_model_version("versions", f"s3://models/{name}", tags=tags, description=name)
    with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags):
        if name == "kept":
            mlflow.log_metric("loss", float("nan"))


def runs(condition):
    return [run.info.run_name for run in client.search_runs([experiment], condition)]


found = {
    "runs": runs(NOT_ARCHIVED),
    "experiments": [one.name for one in client.search_experiments(filter_string=NOT_ARCHIVED)],
    "registered models": [one.name for one in client.search_registered_models(NOT_ARCHIVED)],
    "versions": [one.description for one in client.search_model_versions(f"name = 'versions' and {NOT_ARCHIVED}")],
    "logged models": [one.name for one in client.search_logged_models([experiment], NOT_ARCHIVED)],
}
print(NOT_ARCHIVED, "finds", found)
assert all(names == ["kept"] for names in found.values())
print("metrics.loss != 0.5 finds", runs("metrics.loss != 0.5"), "- tags.archived IS NULL finds", runs("tags.archived IS NULL"))
assert runs("metrics.loss != 0.5") == ["kept"] and runs("tags.archived IS NULL") == ["never marked"]

try:
    runs(f"{NOT_ARCHIVED} or tags.archived IS NULL")
    raise SystemExit("or is known by now")
except MlflowException as error:
    print(error)
PY
