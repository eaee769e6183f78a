#!/usr/bin/env bash
# MLflow: the run of a script that crashed is FINISHED, and that of one that ended by sys.exit(0) is FAILED.
#
# Versions: mlflow 3.17.2
# Guess:    FINISHED means that the program came to its end; one that raises an exception leaves FAILED, with or without a `with` block.
# Seen:     after mlflow.start_run() without `with`, or a metric that is logged without any start_run, the run is ended by a hook at the end of the
#           process, always as FINISHED: after an exception, and after sys.exit(1). In a `with` block an exception gives FAILED, and so does
#           sys.exit(0).
# Effect:   a dashboard, or a search for status = 'FINISHED', shows crashed trainings as good ones, and a script that says success as failed. Use
#           `with`, return instead of exiting, and log a last metric that says that the end was reached. Talaria's runs end with the state of its
#           status.json.
source "$(dirname "$0")/install.sh" mlflow==3.17.2
cat > run.py <<'PY'
import os
import subprocess
import sys

import mlflow

os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///mlflow.db"
client = mlflow.MlflowClient()


def status(name, expected, program):
    """The status of the run that a process with this program made."""
    script = f"import sys\nimport mlflow\nmlflow.set_experiment({name!r})\n{program}"
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True)
    (run,) = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    print(f"{name}: exit code {ended.returncode}, {run.info.status}")
    assert (ended.returncode, run.info.status) == expected, ended.stderr.decode()[-500:]


status("start_run and an exception", (1, "FINISHED"), "mlflow.start_run()\nmlflow.log_metric('loss', 1)\nraise ValueError")
status("a metric alone and an exception", (1, "FINISHED"), "mlflow.log_metric('loss', 1)\nraise ValueError")
status("start_run and sys.exit(1)", (1, "FINISHED"), "mlflow.start_run()\nsys.exit(1)")
status("with and an exception", (1, "FAILED"), "with mlflow.start_run():\n    raise ValueError")
status("with and sys.exit(0)", (0, "FAILED"), "with mlflow.start_run():\n    sys.exit(0)")
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
