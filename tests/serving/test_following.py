"""An alias that moves: the served model changes, and no client notices but by the answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import DataError
from talaria.registry.promotion.promote import promote
from talaria.registry.promotion.rollback import rollback
from talaria.serving.decoding.batch import Batch
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.tracking.mlflow_client import connect

from tests.serving.running_server import Running, serving
from tests.support import tiny_pipeline

GREEN = "123456 Say green"


@pytest.fixture
def running(model: str, uri: str) -> Iterator[Running]:
    with serving(ServedSource(f"models:/{model}@champion", uri)) as running:
        yield running


def test_a_promotion_and_a_rollback_under_fifty_clients_fail_no_request(running: Running, model: str, uri: str) -> None:
    answered: list[tuple[str, str]] = []
    over = threading.Event()

    def client(number: int) -> None:
        while not over.is_set():
            if number % 5:
                answer = running.ask(GREEN, max_tokens=4)
                answered.append((answer.system_fingerprint, answer.choices[0].message.content))
            else:
                chunks = list(running.ask(GREEN, max_tokens=4, stream=True))
                assert chunks[-1].choices[0].finish_reason in ("stop", "length")
                answered.append((chunks[0].system_fingerprint, "".join(chunk.choices[0].delta.content or "" for chunk in chunks)))

    def wait_for_answers_of(version: int) -> None:
        before = len(answered)
        while sum(fingerprint == f"{model}-{version}" for fingerprint, _ in answered[before:]) < 50:
            assert not any(done.done() for done in clients), "a request failed"
            time.sleep(0.01)

    with ThreadPoolExecutor(50) as pool:
        clients = [pool.submit(client, number) for number in range(50)]
        try:
            wait_for_answers_of(1)
            promote(model, 2, uri=uri, by="tester")
            assert running.follower.look()
            wait_for_answers_of(2)
            rollback(model, reason="a test", who="tester", uri=uri)
            assert running.follower.look()
            wait_for_answers_of(1)
        finally:
            over.set()
    for done in clients:
        done.result()
    by_version = {version: {text for of, text in answered if of == f"{model}-{version}"} for version in (1, 2)}
    assert by_version[2] == {"green!"}
    assert "green!" not in by_version[1]


def test_a_request_in_flight_ends_on_the_model_that_took_it(
    running: Running, model: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, go_on, step = running.follower.engine, threading.Event(), Batch.step

    def held(self: Batch) -> Any:
        assert self is not before._batch or go_on.wait(60)
        return step(self)

    monkeypatch.setattr(Batch, "step", held)
    stream = running.ask(GREEN, max_tokens=40, stream=True)
    next(iter(stream))
    promote(model, 2, uri=uri, by="tester")
    assert running.follower.look()
    assert running.ask(GREEN).system_fingerprint == f"{model}-2"
    assert not before.join(0)
    go_on.set()
    chunks = list(stream)
    assert {chunk.system_fingerprint for chunk in chunks} == {f"{model}-1"}
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert before.join(60)
    assert before.model.hf.device.type == "meta", "its memory is free"


def test_a_version_that_does_not_load_leaves_the_old_one_and_health_says_so(
    running: Running, model: str, uri: str, tmp_path: Path
) -> None:
    client = connect(uri)
    run = client.get_model_version(model, "1").run_id
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    broken = client.create_model_version(model, str(tmp_path), run)
    try:
        client.set_registered_model_alias(model, "champion", broken.version)
        assert not running.follower.look()
        health = running.http.get("/health")
        assert (health.status_code, health.json()["version"]) == (200, 1)
        assert health.json()["failed"]["version"] == int(broken.version)
        assert str(tmp_path) in health.json()["failed"]["reason"]
        assert running.ask(GREEN).system_fingerprint == f"{model}-1"
        assert "talaria_failed_swaps_total 1.0" in running.http.get("/metrics").text
        client.set_registered_model_alias(model, "champion", "2")
        assert running.follower.look()
        assert running.http.get("/health").json()["failed"] is None
    finally:
        client.delete_model_version(model, broken.version)


def test_mlflow_away_changes_nothing(running: Running, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    source = running.follower.source
    object.__setattr__(source, "uri", "http://127.0.0.1:9")
    assert not running.follower.look()
    health = running.http.get("/health").json()
    assert health["status"] == "ok"
    assert "does not answer" in health["failed"]["reason"]
    assert running.ask(GREEN, max_tokens=1).choices


def test_weights_are_not_those_of_the_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """findings/transformers_overwritten_weights.sh: a model on a CPU is a memory map of its file."""
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(folders["train"] / "model", folder)
    with serving(ServedSource(str(folder))) as running:
        before = running.ask(GREEN).choices[0].message.content
        file = folder / "model.safetensors"
        with file.open("r+b") as opened:
            opened.seek(file.stat().st_size // 2)
            opened.write(b"\x00" * (file.stat().st_size // 2))
        assert running.ask(GREEN).choices[0].message.content == before == "green!"


def test_there_is_nothing_to_serve(uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such model version"), serving(ServedSource("models:/nobody@champion", uri)):
        pass
    with pytest.raises(DataError, match="not a model folder"), serving(ServedSource(str(tmp_path))):
        pass


def test_the_default_length_is_that_of_the_evaluation(running: Running, folders: dict[str, Path]) -> None:
    assert running.follower.engine.model.answer_tokens == tiny_pipeline.config().evaluate.max_new_tokens == 8
    assert running.ask(GREEN).usage.completion_tokens <= 8
