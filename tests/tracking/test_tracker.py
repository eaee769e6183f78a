"""The run of a training folder in MLflow: complete, once, continued by retries, and never in the training's way."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest
from talaria.common.errors import UserError
from talaria.common.redact import scrub
from talaria.config.schema import Config
from talaria.tracking.mlflow_client import TrackingError, connect, public_uri, tracking_uri
from talaria.tracking.tracker import Tracker, catch_up

from tests.support import tiny_pipeline
from tests.support.server_process import free_port


class Training:
    """What a trainer leaves in its folder, step by step."""

    def __init__(self, root: Path, name: str = "train-abc") -> None:
        self.folder = root / ".work" / name
        self.folder.mkdir(parents=True)
        self.inputs = {"tokenize": root / "tokens", "base": root / "base", "train": self.folder}

    def steps(self, first: int, last: int) -> None:
        with (self.folder / "metrics.jsonl").open("a") as file:
            for step in range(first, last + 1):
                line = {"step": step, "loss": 1.0 / step, "lr": 1e-3, "mfu": None, "time": time.time()}
                file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        path = self.folder / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:step]))

    def evaluated(self, step: int, loss: float) -> None:
        with (self.folder / "evals.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss, "time": time.time()}) + "\n")

    def ends(self, state: str, reason: str | None = None) -> None:
        self.folder.joinpath("status.json").write_text(json.dumps({"state": state, "reason": reason, "time": time.time()}))


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return tiny_pipeline.config(registry={"experiment": tmp_path.name, "model": tmp_path.name})


def losses(uri: str, run_id: str) -> dict[int, float]:
    history = connect(uri).get_metric_history(run_id, "loss")
    assert len(history) == len({point.step for point in history}), "a step was logged twice"
    return {point.step: point.value for point in history}


def tracked(settings: Config, training: Training, uri: str, **more) -> Tracker:
    """A tracker with all the time it needs at the end, so that a slow machine decides nothing."""
    return Tracker(settings, training.inputs, training.folder, uri=uri, **{"flush_seconds": 300.0, "poll": 0.05, **more})


def test_every_step_arrives_with_its_own_time(training, settings, uri):
    with tracked(settings, training, uri) as tracker:
        training.steps(1, 1500)
        training.evaluated(1000, 0.25)
        training.ends("done")
    assert losses(uri, tracker.run_id) == {step: pytest.approx(1 / step) for step in range(1, 1501)}
    client = connect(uri)
    first = json.loads((training.folder / "metrics.jsonl").read_text().splitlines()[0])
    assert client.get_metric_history(tracker.run_id, "lr")[0].timestamp == int(first["time"] * 1000)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["heldout_loss"] == 0.25
    assert run.data.params["train.lr"] == "0.01"
    assert "mfu" not in run.data.metrics
    assert run.data.metrics["cost/seconds"] > 0
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 0


def test_a_retry_continues_the_run_though_the_trainer_went_back(training, settings, uri):
    with tracked(settings, training, uri) as first:
        training.steps(1, 50)
        training.ends("preempted", "SIGTERM")
    stopped = connect(uri).get_run(first.run_id)
    assert stopped.info.status == "KILLED"
    assert stopped.data.tags["talaria.reason"] == "SIGTERM"
    training.rewind(30)
    with tracked(settings, training, uri) as second:
        training.steps(31, 80)
        training.ends("done")
    assert second.run_id == first.run_id
    assert sorted(losses(uri, second.run_id)) == list(range(1, 81))
    run = connect(uri).get_run(second.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["talaria.reason"] == ""


def test_a_trainer_that_goes_back_while_it_is_watched_logs_no_step_twice(training, settings, uri):
    with tracked(settings, training, uri) as tracker:
        training.steps(1, 50)
        wait_for(lambda: tracker.run_id and len(connect(uri).get_metric_history(tracker.run_id, "loss")) == 50)
        training.rewind(30)
        training.steps(31, 60)
        training.ends("failed", "out of memory")
    assert sorted(losses(uri, tracker.run_id)) == list(range(1, 61))
    assert connect(uri).get_run(tracker.run_id).info.status == "FAILED"


def test_a_torn_line_is_sent_once_it_is_whole(training, settings, uri):
    with tracked(settings, training, uri) as tracker:
        training.steps(1, 3)
        line = json.dumps({"step": 4, "loss": 0.5, "time": time.time()})
        with (training.folder / "metrics.jsonl").open("a") as file:
            file.write(line[:10])
            file.flush()
            wait_for(lambda: tracker.run_id and len(connect(uri).get_metric_history(tracker.run_id, "loss")) == 3)
            file.write(line[10:] + "\n")
        training.ends("done")
    assert losses(uri, tracker.run_id)[4] == 0.5


def test_a_dead_server_is_one_line_and_gets_everything_later(training, settings, sqlite_uri):
    said: list[str] = []
    dead = f"http://user:planted-pass@127.0.0.1:{free_port()}"
    with tracked(settings, training, dead, on_line=said.append) as tracker:
        training.steps(1, 20)
        training.ends("done")
    assert tracker.run_id is None
    assert len(said) == 2, said  # that it does not answer, and how much is not sent
    assert "does not answer" in said[0]
    assert "20 steps" in said[1]
    assert "planted" not in "".join(said) + (training.folder / "mlflow.json").read_text()

    log = catch_up(settings, training.inputs, sqlite_uri)
    assert sorted(losses(sqlite_uri, log.run_id)) == list(range(1, 21))
    assert catch_up(settings, training.inputs, sqlite_uri).run_id == log.run_id


def test_a_server_that_dies_and_comes_back_misses_nothing(training, settings, server):
    said: list[str] = []
    try:
        with tracked(settings, training, server.uri, on_line=said.append) as tracker:
            training.steps(1, 10)
            wait_for(lambda: tracker.run_id and len(losses(server.uri, tracker.run_id)) == 10)
            server.stop()
            training.steps(11, 20)
            wait_for(lambda: any("does not answer" in line for line in said))
            server.start()
            training.steps(21, 30)
            wait_for(lambda: any("answers again" in line for line in said))
            training.ends("done")
    finally:
        server.start()
    assert sorted(losses(server.uri, tracker.run_id)) == list(range(1, 31))
    assert len([line for line in said if "does not answer" in line]) == 1


def test_without_any_address_training_is_not_tracked_and_goes_on(settings, tmp_path):
    said: list[str] = []
    folder = tmp_path / "anywhere"
    folder.mkdir()
    with Tracker(settings, {"tokenize": tmp_path, "base": tmp_path}, folder, on_line=said.append) as tracker:
        pass
    assert tracker.run_id is None
    assert "MLFLOW_TRACKING_URI" in said[0]
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        tracking_uri()


def follow(root: Path, name: str) -> None:
    training = Training(root, name)
    training.steps(1, 400)
    training.ends("done")
    log = catch_up(tiny_pipeline.config(), training.inputs, tracking_uri(root))
    (root / f"{name}.run").write_text(str(log.run_id))


def test_many_processes_share_one_sqlite_file(tmp_path):
    """The trainer's follower, a registration and a person's command line, all at once and on a fresh database."""
    context = multiprocessing.get_context("forkserver")  # MLflow is imported once, and then the processes begin together
    context.set_forkserver_preload(["mlflow", "mlflow.store.tracking.sqlalchemy_store", __name__])
    children = [context.Process(target=follow, args=(tmp_path, f"train-{child}")) for child in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    for run in tmp_path.glob("train-*.run"):
        assert len(losses(tracking_uri(tmp_path), run.read_text())) == 400


def test_a_login_in_the_address_is_used_but_never_shown(monkeypatch, training, settings):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:planted%20pass@127.0.0.1:1/mlflow")
    address = tracking_uri()
    assert address == "http://127.0.0.1:1/mlflow"
    import os

    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "planted pass")
    assert public_uri("http://ann:planted@host:5000/x?token=planted") == "http://host:5000/x"
    with pytest.raises(TrackingError) as caught:
        catch_up(settings, training.inputs, address)
    assert "planted" not in str(caught.value)


def test_scrub_takes_out_what_looks_like_a_secret(monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "s3cr3t-value")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "harmless")
    assert scrub("x s3cr3t-value y") == "x *** y"
    assert scrub("https://u:p@host/a and hf_abcdefghijklmnop") == "https://***@host/a and hf_***"
    assert scrub("harmless max_tokens") == "harmless max_tokens"


def wait_for(condition, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.05)
