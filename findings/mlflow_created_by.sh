#!/usr/bin/env bash
# MLflow: nothing fills the column "Created by" in the list of a model's versions.
#
# Version:  mlflow 3.17.2 (SQLite store, the same code behind the server)
# Guess:    a version is created by whoever creates it, as a run's "Created by" (tag mlflow.user) says by itself.
# Seen:     the page reads the version's field user_id. The database has a column for it, but the store only ever clears it, and no
#           call takes a value; a tag mlflow.user on the version changes nothing.
# Effect:   who made a version can only be seen on its run, and on its logged model if somebody tags that. Talaria sets both.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import inspect
import mlflow
from mlflow import MlflowClient

mlflow.set_tracking_uri("sqlite:///runs.db")
with mlflow.start_run() as run:
    logged = mlflow.pyfunc.log_model(name="echo", python_model=lambda model_input: model_input, input_example=["hello"])
client = MlflowClient()
client.create_registered_model("echo")
made = client.create_model_version("echo", logged.model_uri, run.info.run_id, {"mlflow.user": "ann"}, model_id=logged.model_id)
version = client.get_model_version("echo", made.version)
print("run:", repr(client.get_run(run.info.run_id).data.tags["mlflow.user"]), "version:", repr(version.user_id), version.tags)
assert client.get_run(run.info.run_id).data.tags["mlflow.user"]
assert version.user_id in (None, "")
takes = [name for name, call in inspect.getmembers(MlflowClient, inspect.isfunction) if "version" in name
         and "user_id" in inspect.signature(call).parameters]
print("calls on versions that take a user:", takes)
assert not takes
PY
