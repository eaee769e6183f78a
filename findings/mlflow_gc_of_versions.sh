#!/usr/bin/env bash
# MLflow: `mlflow gc` removes the files of registered versions, whose status stays READY.
#
# Version:  mlflow 3.17.2 (SQLite store, files in a local folder)
# Guess:    a version whose run is deleted keeps its files, or gc refuses, or the version says that its files are gone; copy_model_version
#           gives the new version files of its own.
# Seen:     deleting the run of a version leaves the version serving. The next `mlflow gc` removes the run's files, and with them those of
#           the version and of each copy that copy_model_version made, under other names too: a copy refers to the first. All stay READY
#           with their aliases; only who loads them is told, by "No such artifact". gc prints the run's id and no word of versions.
#           Files of a logged model (models:/m-...) stay, since those are not the run's.
# Effect:   a nightly gc takes away the champion that a copy promoted to production, if somebody tidied the old run. Register logged models,
#           as Talaria does, and keep the runs of other versions.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
export MLFLOW_TRACKING_URI=sqlite:///runs.db
cat > run.py <<'PY'
import os, sys
import mlflow

client = mlflow.MlflowClient()


def files(uri):
    try:
        return sorted(os.listdir(mlflow.artifacts.download_artifacts(uri)))
    except Exception as error:
        return str(error)


if sys.argv[1] == "make":
    with mlflow.start_run() as run:
        mlflow.log_text("weights", "model/model.safetensors")
        model = mlflow.initialize_logged_model(name="logged")
    client.log_model_artifacts(model.model_id, "weights")
    client.finalize_logged_model(model.model_id, "READY")
    client.create_registered_model("logged")
    client.create_model_version("logged", source=f"models:/{model.model_id}", model_id=model.model_id, run_id=run.info.run_id)
    client.create_registered_model("staging")
    client.create_model_version("staging", source=f"{run.info.artifact_uri}/model", run_id=run.info.run_id)
    client.copy_model_version("models:/staging/1", "production")
    client.set_registered_model_alias("production", "champion", "1")
    client.delete_model_version("staging", "1")
    client.delete_run(run.info.run_id)
    print("run deleted:", files("models:/production@champion"))
    assert files("models:/production@champion") == ["model.safetensors"]
else:
    version = client.get_model_version_by_alias("production", "champion")
    print("after gc:", version.status, version.source, version.aliases, files("models:/production@champion"))
    assert (version.status, version.source) == ("READY", "models:/staging/1")
    assert "No such artifact" in files("models:/production@champion")
    print("of a logged model:", files("models:/logged/1"))
    assert files("models:/logged/1") == ["model.safetensors"]
PY
mkdir weights && touch weights/model.safetensors
py run.py make 2>log.txt || { tail -5 log.txt; exit 1; }
py -m mlflow gc --backend-store-uri "$MLFLOW_TRACKING_URI" 2>log.txt | tee gc.txt || { tail -5 log.txt; exit 1; }
! grep -qi "version\|production" gc.txt
py run.py look 2>log.txt || { tail -5 log.txt; exit 1; }
