"""DAGs of training through the services that `make up` starts: a real scheduler, triggerer, API and `airflow dags trigger`."""

from __future__ import annotations

import contextlib
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

import httpx
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
    "promote": {"approval": True, "rule": "plain"},  # a few steps differ by less than noise on so few conversations
    "schedule": {"on_new_revision": True, "poll_seconds": 1, "deadline_hours": 0.0001},
}
DAG = "sft_small"
"""The DAG of the configuration `small`."""
pytestmark = [pytest.mark.timeout(1800), pytest.mark.stack]


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
        patch.setenv("TALARIA_WEBHOOK", f"http://127.0.0.1:{channel.server_port}/hook")
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_HOME", str(folder / "hf"))
        with running_stack(folder / "talaria") as stack:
            until(lambda: stack.api.has_dag(DAG))
            yield stack


def until(look: Callable[[], Any], seconds: float = 600) -> Any:
    """What `look` returns once it is true. A machine that is too busy to answer in time is asked again."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TimeoutException):
            if value := look():
                return value
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.3)


class Runs:
    def __init__(self, stack: Stack) -> None:
        self.api, self.stack = stack.api, stack

    def all(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return self.api.call("GET", f"/api/v2/dags/{DAG}/dagRuns", params={"order_by": "id"})["dag_runs"]

    def next(self, known: int) -> str:
        return until(lambda: self.all()[known:])[0]["dag_run_id"]

    def ended(self, run_id: str) -> str:
        return until(lambda: (state := self.api.run(DAG, run_id)["state"]) in ("success", "failed") and state)

    def tasks(self, run_id: str) -> dict[str, str]:
        """Of mapped tasks, the last part's state."""
        return {task["task_id"]: task["state"] for task in self.api.tasks(DAG, run_id)}

    def answer(self, run_id: str, option: str) -> str:
        """Answer the question whenever the run asks it, until the run has ended; returns its state.

        It may ask twice: an answer that arrives before the scheduler has heard that the asking process is done looks to
        Airflow 3.3 like a task killed from outside, and is tried again. People are slower than that.
        """
        path = f"/api/v2/dags/{DAG}/dagRuns/{run_id}/taskInstances/registry.approve/-1/hitlDetails"

        def answered_and_ended() -> str | None:
            state = str(self.api.run(DAG, run_id)["state"])
            if self.tasks(run_id).get("registry.approve") == "awaiting_input":
                question = self.api.call("GET", path)
                assert "held-out loss" in question["body"]
                assert ("champion (version" in question["body"]) is ("| champion |" in question["body"])
                if not question["response_received"]:
                    self.api.call("PATCH", path, json={"chosen_options": [option], "params_input": {}})
            return state if state in ("success", "failed") else None

        return str(until(answered_and_ended))

    def trigger(self, run_id: str, conf: dict[str, Any], dag: str = DAG) -> subprocess.CompletedProcess[str]:
        environment = service_environment(self.stack.home, self.stack.ports, "trigger")
        command = [sys.executable, "-m", "airflow", "dags", "trigger", dag, "--run-id", run_id, "--conf", json.dumps(conf)]
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
    from talaria.registry.promotion.champion import champion
    from talaria.registry.versions import tags_of
    from talaria.tracking.mlflow_client import connect

    def champions_version() -> int | None:
        found = champion("small", uri=stack.ports.mlflow_url)
        return int(found["version"]) if found else None

    assert stack.api.call("GET", f"/api/v2/dags/{DAG}")["is_paused"], "nothing starts by itself until somebody wants it to"
    stack.api.unpause(DAG)

    # The first look is no event.
    looks = hub.looks
    until(lambda: hub.looks > looks + 2)
    assert runs.all() == []

    # The revision moves: a run starts by itself, trains on that commit, and asks before it promotes.
    hub.commit = "e" * 40
    first = runs.next(0)
    assert stack.api.run(DAG, first)["run_type"] == "asset_triggered"
    assert runs.answer(first, "Approve") == "success", failure(stack.api, DAG, first)
    assert stack.api.xcom(DAG, first, "configure")["download"]["revision"] == hub.commit
    assert runs.tasks(first)["data.tokenize_part"] == "success"
    best = champions_version()
    assert best is not None
    decided = f"Version {best} is the champion."
    assert f"{DAG} {first}: {decided}" in "\n".join(channel.told)
    assert str(stack.api.run(DAG, first)["note"]).startswith(decided)
    promoted = connect(stack.ports.mlflow_url).get_model_version("small", str(best))
    assert tags_of(promoted)["talaria.gate.approved_by"] == "admin"
    assert any(text.startswith(f"{DAG} {first} waits for approval: http://127.0.0.1") for text in channel.told)
    until(
        lambda: any(
            text.startswith(f"{DAG} {first} is not done 0.0001 h after it was queued: it is late") for text in channel.told
        )
    )

    # An event without a new revision: the champion is of this data already, so the run ends as skipped and says why.
    (asset,) = stack.api.call("GET", "/api/v2/assets", params={"name_pattern": "hub:%"})["assets"]
    stack.api.call("POST", "/api/v2/assets/events", json={"asset_id": asset["id"], "extra": {}})
    second = runs.next(1)
    assert runs.ended(second) == "success"
    assert set(runs.tasks(second).values()) == {"skipped"}
    reason = f"Nothing has changed since champion version {best} of small"
    assert reason in json.dumps(stack.api.log(DAG, second, "configure", 1))
    assert until(lambda: stack.api.run(DAG, second)["note"]).startswith(f"Skipped: {reason}")

    # Somebody trains longer, on the same data; rejected, it leaves the champion alone, and the version says who rejected it.
    body = {"logical_date": None, "dag_run_id": "longer", "conf": {"train.max_steps": 12}}
    stack.api.call("POST", f"/api/v2/dags/{DAG}/dagRuns", json=body)
    assert runs.answer("longer", "Reject") == "success", failure(stack.api, DAG, "longer")
    asked = stack.api.call("GET", f"/api/v2/dags/{DAG}/dagRuns/longer/taskInstances/registry.approve/-1/hitlDetails")["body"]
    assert f"champion (version {best})" in asked, "the three side by side"
    assert " – |" not in asked, "with a number each"
    told = f"Version {best + 1} is not promoted. It was rejected by admin."
    assert stack.api.xcom(DAG, "longer", "registry.promote")["reason"] == told
    assert champions_version() == best
    rejected = connect(stack.ports.mlflow_url).get_model_version("small", str(best + 1))
    assert tags_of(rejected)["talaria.rejected_by"] == "admin"
    assert f"{DAG} longer: {told}" in channel.told

    # The watcher has not fired again for what it has seen.
    assert len(runs.all()) == 3


def test_settings_that_do_not_go_together_fail_with_the_command_lines_sentence(
    stack: Stack, channel: Channel, runs: Runs
) -> None:
    stack.api.unpause(DAG)
    assert runs.trigger("refused", {"set": {"base.source": "local"}}).returncode == 0
    assert runs.ended("refused") == "failed"
    with pytest.raises(ConfigError) as command_line:
        settings.load(Path(stack.home.root).parent / "configs" / "small.yaml", {"base.source": "local"})
    assert failure(stack.api, DAG, "refused") == f"configure: {command_line.value}"
    assert f"{DAG} refused: configure failed: {command_line.value}" in channel.told
    shown = io.StringIO()
    state, tasks = follow(Follower(stack.api, DAG, "refused", stack.home.store), Console(file=shown))
    assert (state, len(tasks)) == ("failed", len(stack.api.dag_tasks(DAG)))
    assert tasks[0].id == "configure"
    assert "configure            failed" in shown.getvalue()
    assert {state for name, state in runs.tasks("refused").items() if name != "configure"} == {"upstream_failed"}


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"set": {"train.epoch": 1}}, "unknown setting train.epoch; did you mean train.epochs?"),
        ({"train.epochs": 10**20}, "train.epochs: should be less than or equal to 100000, got 1"),
        ({"config": "../../secrets"}, "unknown configuration '../../secrets'"),
    ],
    ids=str,
)
def test_a_typo_is_refused_when_the_run_is_triggered(stack: Stack, runs: Runs, conf: dict[str, Any], sentence: str) -> None:
    """By Airflow's command line and by REST, which the form uses."""
    done = runs.trigger("typo", conf, "sft")
    assert done.returncode != 0
    assert sentence in " ".join((done.stderr + done.stdout).split())
    with pytest.raises(httpx.HTTPStatusError) as refused:
        stack.api.call("POST", "/api/v2/dags/sft/dagRuns", json={"logical_date": None, "conf": conf})
    assert refused.value.response.status_code == 400
    assert sentence in refused.value.response.json()["detail"]


def test_a_configuration_that_was_added_a_moment_ago_can_be_triggered(stack: Stack) -> None:
    (Path(stack.home.root).parent / "configs" / "fresh.yaml").write_text(yaml.safe_dump(CONFIG | {"schedule": {}}))
    stack.api.call("POST", "/api/v2/dags/sft/dagRuns", json={"logical_date": None, "conf": {"config": "fresh"}})
