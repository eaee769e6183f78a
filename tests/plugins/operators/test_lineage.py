"""OpenLineage through Airflow's provider: what our tasks read and made arrives at a receiver, and nothing does by default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import UserError
from talaria.config.load import parse
from talaria.store.store import Store
from talaria_airflow.operators.lineage import of_version
from talaria_airflow.operators.register import RegisterOperator

from tests.support.airflow_env import REPOSITORY
from tests.support.http_server import serving

DAG = """
import sys
from airflow.sdk import DAG
from talaria_airflow.operators.stage import StageOperator
from tests.plugins.operators.conftest import known

config = {"name": "lineage", "download": {"source": "local", "path": sys.argv[1]}}
with DAG("lineage", schedule=None) as dag:
    download = StageOperator(task_id="download", stage="download", config=config, inputs={}, store=sys.argv[2])
    StageOperator(task_id="convert", stage="convert", config=config, inputs={"download": download.output}, store=sys.argv[2])
known(dag)
assert dag.test().state == "success"
"""


@contextmanager
def receiver() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of an OpenLineage backend, and the events that it was sent."""
    events: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as url:
        yield url, events


def names(datasets: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(dataset["namespace"], dataset["name"]) for dataset in datasets]


def test_stages_tell_what_they_read_and_made(airflow_db: None, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}]))
    store = tmp_path / "store"
    with receiver() as (address, events):
        env = os.environ | {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps({"type": "http", "url": address})}
        env |= {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", DAG, rows, store], env=env, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    ended = {event["job"]["name"]: event for event in events if event["eventType"] == "COMPLETE"}
    (downloaded,), (converted,) = (list((store / stage).iterdir()) for stage in ("download", "convert"))
    assert names(ended["lineage.download"]["inputs"]) == [("file", str(rows))]
    assert names(ended["lineage.download"]["outputs"]) == [("file", str(downloaded))]
    assert names(ended["lineage.convert"]["inputs"]) == [("file", str(downloaded))]
    assert names(ended["lineage.convert"]["outputs"]) == [("file", str(converted))]
    key = json.loads((converted / "manifest.json").read_text())["key"]
    assert ended["lineage.convert"]["outputs"][0]["facets"]["version"]["datasetVersion"] == key


def test_registration_tells_the_versions_that_it_made() -> None:
    config = parse({"name": "lineage"}, "test").model_dump(mode="json")
    task = RegisterOperator(task_id="register", config=config, inputs={"train": {"path": "/store/train/k", "key": "k"}})
    task.made = [of_version("http://mlflow:5000", "chat", 3)]
    told = task.get_openlineage_facets_on_complete(None)
    assert [(one.namespace, one.name) for one in told.inputs] == [("file", "/store/train/k")]
    assert [(one.namespace, one.name, one.facets["version"].datasetVersion) for one in told.outputs] == [
        ("http://mlflow:5000", "models:/chat", "3")
    ]


def test_registration_does_without_a_report_that_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = store.run("train", "k" * 64, lambda folder: {}, described_by={}).as_json()
    gone = {"path": str(tmp_path / "report" / "k"), "key": "k" * 64}
    task = RegisterOperator(task_id="register", config={}, inputs={"train": made, "report": gone})
    assert task._folders(store) == {"train": Path(made["path"])}
    task.inputs = {"evaluate": gone}
    with pytest.raises(UserError, match="is gone, pruned perhaps"):
        task._folders(store)


def test_without_a_transport_the_provider_is_off() -> None:
    """As in compose, whose variable is empty unless somebody names one."""
    ask = "from airflow.providers.openlineage import conf; print(conf.is_disabled())"
    env = os.environ | {"AIRFLOW__OPENLINEAGE__TRANSPORT": ""}
    done = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
