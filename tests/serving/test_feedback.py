"""Requests kept as traces, what people say of the answers, and the training data that comes of it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from talaria.cli import app, serve_commands, stage_commands  # noqa: F401  (they add their commands)
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.serving.feedback.traces import TraceWriter
from talaria.tracking.mlflow_client import connect, tracking_uri
from typer.testing import CliRunner

from tests.serving.running_server import Running, serving

GREEN = "123456 Say green"
EXPERIMENT = "said"
SECRET = "hf_" + "a" * 30


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "store"


@pytest.fixture
def running(folders: dict[str, Path], store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """A server that keeps what it is asked."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "")
    writer = TraceWriter(tracking_uri(store), EXPERIMENT)
    try:
        with serving(ServedSource(str(folders["train"] / "model")), traces=writer) as running:
            yield running
    finally:
        mlflow.set_tracking_uri(None)  # the default, put back as an address, would be in the environment of all later tests
        mlflow.tracing.reset()


def say(running: Running, answer: Any, **what: Any) -> Any:
    reply = running.post({"id": answer.id, **what}, "/v1/feedback")
    assert reply.json() == {"id": answer.id, "object": "feedback", "recorded": True}, reply.text


def exported(store: Path, output: Path) -> tuple[list[Any], dict[str, int]]:
    done = CliRunner().invoke(
        app.app,
        ["feedback", "export", EXPERIMENT, "--output", str(output), "--store", str(store), "--json"],
        catch_exceptions=False,
    )
    return [json.loads(line) for line in output.read_text().splitlines()], json.loads(done.stdout)


def test_liked_and_corrected_answers_become_rows_to_train_on(running: Running, store: Path, tmp_path: Path) -> None:
    say(running, running.ask(GREEN), thumb="up", comment="quite so")
    streamed = list(running.ask("123456 Say red", stream=True))
    say(running, streamed[0], thumb="down", correction="RED")
    say(running, running.ask(GREEN + " now"), thumb="down")
    say(running, running.ask(GREEN, max_tokens=1), thumb="up")
    twice = running.ask(GREEN)
    say(running, twice, thumb="down")
    say(running, twice, thumb="up")
    running.ask("nobody judged this")
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "?"}, {"role": "user", "content": GREEN}]
    several = running.openai.chat.completions.create(model="model", messages=talk, n=2)  # type: ignore[call-overload]
    say(running, several, choice=1, correction="greener!")
    rows, facts = exported(store, tmp_path / "liked.jsonl")
    assert facts == {"rows": 3, "liked": 1, "corrected": 2, "disliked": 1, "cut off": 1, "repeated": 1}
    assert [row["messages"][-1]["content"] for row in rows] == ["green!", "RED", "greener!"]
    assert rows[0]["messages"][0] == {"role": "user", "content": GREEN}
    assert rows[2]["messages"][1] == {"role": "assistant", "content": "?", "weight": 0}, "nobody judged the earlier answer"
    checked = CliRunner().invoke(app.app, ["check", str(tmp_path / "liked.jsonl"), "--json"], catch_exceptions=False)
    assert checked.exit_code == 0, checked.output
    facts = json.loads(checked.stdout)
    assert facts["stops"] is None
    assert facts["rows"] == 3


def test_secrets_are_neither_kept_nor_exported(
    running: Running, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "opensesame99")
    say(running, running.ask(f"{GREEN} {SECRET}"), thumb="up")
    say(running, running.ask(f"{GREEN} opensesame99"), thumb="up")
    say(running, running.ask(f"{GREEN} then"), correction=f"green! {SECRET}")
    say(running, running.ask(GREEN), thumb="up", comment=f"why not {SECRET}")
    rows, facts = exported(store, tmp_path / "liked.jsonl")
    assert facts == {"rows": 1, "with a secret": 3, "liked": 1}
    kept = (tmp_path / "liked.jsonl").read_bytes() + b"".join(file.read_bytes() for file in store.rglob("*") if file.is_file())
    assert SECRET.encode() not in kept
    assert b"opensesame99" not in kept
    assert len(rows) == 1


def test_a_client_may_ask_not_to_be_kept(running: Running, store: Path) -> None:
    answer = running.ask(GREEN, store=False)
    assert running.post({"id": answer.id, "thumb": "up"}, "/v1/feedback").status_code == 404
    client = connect(tracking_uri(store))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert not client.search_traces(locations=[experiment.experiment_id])


def test_feedback_that_cannot_be_kept_is_refused(running: Running) -> None:
    nobody = "chatcmpl-" + "0" * 32
    for body, status, named in (
        ({"thumb": "up"}, 400, "id"),
        ({"id": "chatcmpl-' OR 1", "thumb": "up"}, 400, "id"),
        ({"id": nobody}, 400, "thumb"),
        ({"id": nobody, "thumb": "sideways"}, 400, "thumb"),
        ({"id": nobody, "thumb": "up", "stars": 5}, 400, "stars"),
        ({"id": nobody, "thumb": "up"}, 404, "no trace"),
    ):
        reply = running.post(body, "/v1/feedback")
        assert (reply.status_code, named in reply.json()["error"]["message"]) == (status, True), reply.text


def test_by_default_nothing_is_kept(served: Running) -> None:
    answer = served.ask(GREEN)
    reply = served.post({"id": answer.id, "thumb": "up"}, "/v1/feedback")
    assert (reply.status_code, "--traces" in reply.json()["error"]["message"]) == (404, True)
    assert served.post({"model": "model", "messages": [{"role": "user", "content": "x"}], "store": True}).status_code == 400


def test_no_client_waits_for_mlflow(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come while a trace is being written, and while MLflow does not answer."""
    go_on, write = threading.Event(), TraceWriter._write

    def held(self: TraceWriter, exchange: Any) -> None:
        assert go_on.wait(60)
        write(self, exchange)

    monkeypatch.setattr(TraceWriter, "_write", held)
    answers = [running.ask(GREEN) for _ in range(3)]
    go_on.set()
    for answer in answers:
        say(running, answer, thumb="up")


def test_there_is_nothing_to_export(running: Running, store: Path, tmp_path: Path) -> None:
    command = ["feedback", "export", "none", "--output", str(tmp_path / "x"), "--store"]
    done = CliRunner().invoke(app.app, [*command, str(store)])
    assert "talaria serve --traces none" in str(done.exception)
    os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow's tracing sets it in the process that serves
    done = CliRunner().invoke(app.app, [*command, str(tmp_path / "elsewhere")])
    assert "there is no such database" in str(done.exception)
    assert not (tmp_path / "elsewhere").exists()
