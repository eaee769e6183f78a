"""A real Airflow api-server with the repository's plugins, a DAG `sft` that ran once, and users who may and may not look."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.support.server_process import free_port

REPOSITORY = Path(__file__).resolve().parents[3]
USERS = {"admin": "admin", "viewer": "viewer", "stranger": ""}  # name -> role; a stranger has none
TRAINED = 2  # the training that the DAG run names, as tests/support/synthetic_runs.py numbers them

DAG = """
from airflow.sdk import dag, task
from tests.support.synthetic_runs import key

@dag(dag_id="sft")
def sft():
    @task
    def train():
        return {"path": f"/some/store/train/{key(%d)}", "key": key(%d) * 2, "facts": {}, "seconds": 1.0, "reused": False}

    train()

sft()
"""
RUN_ONCE = """
import sys
from airflow.utils.db import initdb
initdb()
from airflow.dag_processing.dagbag import DagBag
print("RUN", DagBag(sys.argv[1]).dags["sft"].test().run_id)
"""


@dataclass(frozen=True)
class Airflow:
    url: str
    store: Path
    dag_run: str

    def client(self, user: str | None = None) -> httpx.Client:
        """A client of the page's server: logged in as `user`, or nobody."""
        client = httpx.Client(base_url=f"{self.url}/talaria/", timeout=30, trust_env=False)
        if user:
            login = httpx.post(f"{self.url}/auth/token", json={"username": user, "password": user}, timeout=30, trust_env=False)
            client.headers["Authorization"] = f"Bearer {login.raise_for_status().json()['access_token']}"
        return client


def environment(home: Path, store: Path, mlflow: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW_", "TALARIA_", "MLFLOW_"))}
    return kept | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:{role}" for name, role in USERS.items()),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret for tests, long enough for every component: " + "0123456789" * 3,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")]),
        "TALARIA_STORE": str(store),
        "MLFLOW_TRACKING_URI": mlflow,
    }


def prepare(home: Path, env: dict[str, str]) -> str:
    """Database, passwords and one finished run of the DAG, whose id is returned."""
    (home / "dags").mkdir(parents=True)
    (home / "dags" / "sft.py").write_text(DAG % (TRAINED, TRAINED))
    (home / "passwords.json").write_text(json.dumps({name: name for name in USERS}))
    command = [sys.executable, "-c", RUN_ONCE, str(home / "dags")]
    done = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("RUN ")).split(" ", 1)[1]


class ApiServer:
    def __init__(self, home: Path, env: dict[str, str]) -> None:
        port = free_port()
        self.url, self.log = f"http://127.0.0.1:{port}", home / "api-server.log"
        command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=env, cwd=home, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        for _ in range(900):
            assert self.process.poll() is None, self.log.read_text()
            try:
                if httpx.get(f"{self.url}/api/v2/version", timeout=5, trust_env=False).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError(f"the api-server did not start:\n{self.log.read_text()}")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
