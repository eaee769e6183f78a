#!/usr/bin/env bash
# MLflow: after a registered model is deleted and made again, its version numbers start at 1; a version needs no files to be READY.
#
# Version:  mlflow 3.17.2 (SQLite store)
# Guess:    version numbers are never used twice, as after deleting a version; a source that is not there leaves the version pending.
# Seen:     deleting version 1 makes the next one 2. Deleting the model makes the next one 1 again, so models:/m/1 means another model.
#           create_model_version("m", source="s3://...") is READY at once, whether or not anything is at that address. Deleting a
#           version silently removes the aliases that point to it.
# Effect:   pin a version by run id or digest, not by name and number, and check files before registering them.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from mlflow import MlflowClient

client = MlflowClient("sqlite:///runs.db")
client.create_registered_model("m")
first = client.create_model_version("m", source="s3://bucket/nothing-here/a")
print("status without files:", first.status)
assert (first.version, first.status) == (1, "READY") or (first.version, first.status) == ("1", "READY")
client.set_registered_model_alias("m", "champion", first.version)
client.delete_model_version("m", first.version)
assert client.get_registered_model("m").aliases == {}
second = client.create_model_version("m", source="s3://bucket/nothing-here/b")
print("after deleting version 1:", second.version)
assert int(second.version) == 2
client.delete_registered_model("m")
client.create_registered_model("m")
again = client.create_model_version("m", source="s3://bucket/nothing-here/c")
print("after deleting the model:", again.version)
assert int(again.version) == 1
PY
