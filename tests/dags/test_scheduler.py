"""The DAG `sft` through the services that `make up` starts: a real scheduler, triggerer, API and `airflow dags trigger`."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from talaria.common.errors import ConfigError
from talaria.config import load as settings
from talaria.data.synthetic.generator import generate
from talaria.devstack.follow_run import Follower, failure, follow
from talaria.devstack.installation import service_environment
from talaria.devstack.processes import descendants

from tests.data.hub import REPO, Hub, serve
from tests.support.airflow_env import Stack, running_stack

CONFIG = {
    "download": {"source": "hub", "repo": REPO},
    "base": {"source": "random", "vocab_size": 512, "shape": {"hidden_size": 32, "num_hidden_layers": 1}},
    "tokenize": {"max_tokens": 512, "validation_fraction": 0.1, "shards": 2, "shard_rows": 100},
    "train": {"num_processes": 1, "max_steps": 4, "global_batch": 32, "precision": "fp32", "lr": 3e-3},
    "evaluate": {"prompts": 4, "max_new_tokens": 4},
    "promote": {"approval": True},
    "schedule": {"on_new_revision": True, "poll_seconds": 1, "deadline_hours": 0.0001},
}
pytestmark = pytest.mark.timeout(900)


class Channel(ThreadingHTTPServer):
    """A chat channel's webhook, and what it was told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        super().__init__(("127.0.0.1", 0), Hook)


class Hook(BaseHTTPRequestHandler):
    server: Channel

    def do_POST(self) -> None:
        self.server.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve(Hub({"rows.json": json.dumps(list(generate(400, 0))).encode()})) as hub:
        yield hub


@pytest.fixture(scope="module")
def channel() -> Iterator[Channel]:
    channel = Channel()
    threading.Thread(target=channel.serve_forever, daemon=True).start()
    yield channel
    channel.shutdown()
    channel.server_close()


@pytest.fixture(scope="module")
def stack(hub: Hub, channel: Channel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Services whose scheduled configuration, `small`, watches the stand-in for the hub."""
    folder = tmp_path_factory.mktemp("watching")
    (folder / "configs").mkdir()
    (folder / "configs" / "small.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALARIA_CONFIGS", str(folder / "configs"))
        patch.setenv("TALARIA_CONFIG", "small")
        patch.setenv("TALARIA_WEBHOOK", f"http://127.0.0.1:{channel.server_port}/hook")
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(folder / "hf"))
        with running_stack(folder / "talaria") as stack:
            until(lambda: stack.api.has_dag("sft"))
            yield stack


def until(look: Callable[[], Any], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (value := look()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.3)
    return value


class Runs:
    def __init__(self, stack: Stack) -> None:
        self.api, self.stack = stack.api, stack

    def all(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return self.api.call("GET", "/api/v2/dags/sft/dagRuns", params={"order_by": "id"})["dag_runs"]

    def next(self, known: int) -> str:
        return until(lambda: self.all()[known:])[0]["dag_run_id"]

    def ended(self, run_id: str) -> str:
        return until(lambda: (state := self.api.run("sft", run_id)["state"]) in ("success", "failed") and state)

    def tasks(self, run_id: str) -> dict[str, str]:
        """Of mapped tasks, the last part's state."""
        return {task["task_id"]: task["state"] for task in self.api.tasks("sft", run_id)}

    def answer(self, run_id: str, option: str) -> str:
        """Answer the question whenever the run asks it, until the run has ended; returns its state.

        It may ask twice: an answer that arrives before the scheduler has heard that the asking process is done looks to
        Airflow 3.3 like a task killed from outside, and is tried again. People are slower than that.
        """
        path = f"/api/v2/dags/sft/dagRuns/{run_id}/taskInstances/registry.approve/-1/hitlDetails"

        def answered_and_ended() -> str | None:
            state = str(self.api.run("sft", run_id)["state"])
            if self.tasks(run_id).get("registry.approve") == "awaiting_input":
                question = self.api.call("GET", path)
                assert "held-out loss" in question["body"]
                if not question["response_received"]:
                    self.api.call("PATCH", path, json={"chosen_options": [option], "params_input": {}})
            return state if state in ("success", "failed") else None

        return str(until(answered_and_ended))

    def trigger(self, run_id: str, conf: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        environment = service_environment(self.stack.home, self.stack.ports, "trigger")
        command = [sys.executable, "-m", "airflow", "dags", "trigger", "sft", "--run-id", run_id, "--conf", json.dumps(conf)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def runs(stack: Stack) -> Runs:
    return Runs(stack)


def test_services_listen_on_the_loopback_interface_only(stack: Stack) -> None:
    listening = [
        connection.laddr.ip
        for process in descendants(stack.home)
        for connection in process.net_connections("inet")
        if connection.status == "LISTEN"
    ]
    assert len(listening) >= 2
    assert set(listening) == {"127.0.0.1"}


def test_a_revision_is_trained_once_and_promoted_by_a_person(stack: Stack, hub: Hub, channel: Channel, runs: Runs) -> None:
    from talaria.registry.promotion import champion
    from talaria.tracking.mlflow_client import connect

    def champions_version() -> int | None:
        found = champion("small", uri=stack.ports.mlflow_url)
        return int(found["version"]) if found else None

    stack.api.unpause("sft")

    # The watcher has seen the revision: a run starts by itself, trains on that commit, and asks before it promotes.
    first = runs.next(0)
    assert stack.api.run("sft", first)["run_type"] == "asset_triggered"
    assert runs.answer(first, "Approve") == "success", failure(stack.api, "sft", first)
    assert stack.api.xcom("sft", first, "configure")["download"]["revision"] == hub.commit
    assert runs.tasks(first)["data.tokenize_part"] == "success"
    best = champions_version()
    assert best is not None
    assert f"sft {first}: Version {best} is the champion." in "\n".join(channel.told)
    assert any(text.startswith(f"sft {first} waits for approval: http://127.0.0.1") for text in channel.told)
    until(lambda: f"sft {first} is late: it is not done." in channel.told)

    # An event without a new revision: the champion is of this data already, so the run ends as skipped and says why.
    (asset,) = stack.api.call("GET", "/api/v2/assets", params={"name_pattern": "hub:%"})["assets"]
    stack.api.call("POST", "/api/v2/assets/events", json={"asset_id": asset["id"], "extra": {}})
    second = runs.next(1)
    assert runs.ended(second) == "success"
    assert set(runs.tasks(second).values()) == {"skipped"}
    log = json.dumps(stack.api.log("sft", second, "configure", 1))
    assert "champion" in log

    # A new revision starts a run; rejected, it leaves the champion alone.
    hub.files = {"rows.json": json.dumps(list(generate(400, 1))).encode()}
    hub.commit = "f" * 40
    third = runs.next(2)
    assert runs.answer(third, "Reject") == "success", failure(stack.api, "sft", third)
    assert runs.tasks(third)["registry.promote"] == "skipped"
    assert champions_version() == best
    candidates = connect(stack.ports.mlflow_url).search_model_versions("name='small'")
    assert len(candidates) > 1

    # The watcher has not fired again for what it has seen.
    assert len(runs.all()) == 3


def test_a_bad_override_is_refused_with_the_command_lines_sentence(stack: Stack, channel: Channel, runs: Runs) -> None:
    stack.api.unpause("sft")
    assert runs.trigger("refused", {"set": {"train.lr": -1}}).returncode == 0
    assert runs.ended("refused") == "failed"
    with pytest.raises(ConfigError) as command_line:
        settings.load(Path(stack.home.root).parent / "configs" / "small.yaml", ["train.lr=-1"])
    assert failure(stack.api, "sft", "refused") == f"configure: {command_line.value}"
    assert f"sft refused: configure failed: {command_line.value}" in channel.told
    shown = io.StringIO()
    state, tasks = follow(Follower(stack.api, "sft", "refused", stack.home.store), Console(file=shown))
    assert (state, len(tasks)) == ("failed", 14)
    assert tasks[0].id == "configure"
    assert "configure            failed" in shown.getvalue()
    assert {state for name, state in runs.tasks("refused").items() if name != "configure"} == {"upstream_failed"}


def test_a_name_outside_the_configuration_folder_is_not_triggered(runs: Runs) -> None:
    done = runs.trigger("outside", {"config": "../../secrets"})
    assert done.returncode != 0
    assert "is not one of" in done.stderr + done.stdout
