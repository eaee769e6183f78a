"""A training that loses its machine goes on, on another one, from the checkpoint that object storage has."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talaria.common.files import read_object
from talaria.launch import checkpoint_mirror
from talaria.runs.identity import run_identity
from talaria.store.remote import Remote
from talaria.store.store import Output, Store
from talaria.train.train_state import TrainJob

from tests.support import process_trees, tiny_pipeline
from tests.support.object_storage import Bucket, use
from tests.support.server_process import free_port
from tests.train import ranks

SETTINGS: dict[str, Any] = {"epochs": 2, "save_every": 4, "keep_last": 2, "keep_epochs": True, "hang_timeout": 45}
PLACE = ".work/train-0123"


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    from talaria.train.model.causal_lm import ModelOptions
    from talaria.train.model.loading import load_model

    outputs = tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("store")), tiny_pipeline.config())
    load_model(outputs["base"].path, ModelOptions("fp32"), "cpu")  # what this imports, forked ranks have
    return outputs


@pytest.fixture
def job(upstream: dict[str, Output], tmp_path: Path) -> Callable[[str], TrainJob]:
    """The same training in the store of a machine."""

    def make(machine: str) -> TrainJob:
        folder = tmp_path / machine / PLACE
        folder.mkdir(parents=True, exist_ok=True)
        return TrainJob(tiny_pipeline.config(train=SETTINGS), upstream["tokenize"].path, upstream["base"].path, folder)

    return make


def mirrored(job: TrainJob, told: list[str], **options: Any) -> checkpoint_mirror.Mirror:
    identity = run_identity(job.config, job.tokens, job.base, job.output)
    found = checkpoint_mirror.of_store(job.output, lambda: identity, on_line=told.append, patience=60.0, **options)
    assert found is not None
    return found


def train(job: TrainJob, *, kill_at: int | None = None) -> list[str]:
    """As the launcher does it; returns what it told."""
    told: list[str] = []
    copy = mirrored(job, told)
    copy.fetch()
    with copy:
        before = ranks.at_step(kill_at, 0, signal.SIGKILL) if kill_at else None
        started = ranks.Ranks(job, 1, before)
        assert started.codes() == [-signal.SIGKILL if kill_at else 0], started.log()
    return told


def lines(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ranks.TIMING} for row in ranks.read_lines(path)]


def snapshot(bucket: Bucket) -> dict[str, Any]:
    return dict(json.loads(bucket.get(f"{PLACE}/manifest.json")))


def complete(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("checkpoints/*/complete.json"))]


def test_another_machine_goes_on_as_if_nothing_had_been(
    job: Callable[[str], TrainJob], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third, undisturbed = (job(name) for name in ("one", "two", "three", "four"))
    train(first, kill_at=10)
    for machine, left, kill_at in ((second, first, 17), (third, second, None)):
        step = int(complete(left.output)[-1].name[-8:])
        told = train(machine, kill_at=kill_at)
        assert told[0] == f"step {step} is fetched from {bucket.address}/{PLACE}"
    monkeypatch.delenv("TALARIA_REMOTE")
    ranks.run(undisturbed)
    assert ranks.steps(third.output) == ranks.steps(undisturbed.output)
    assert lines(third.output / "evals.jsonl") == lines(undisturbed.output / "evals.jsonl")
    kinds = [event["kind"] for event in ranks.read_lines(third.output / "events.jsonl")]
    assert (kinds.count("start"), kinds.count("resume"), kinds.count("done")) == (1, 2, 1)
    models = sorted(path.relative_to(undisturbed.output) for path in undisturbed.output.rglob("model.safetensors"))
    assert len(models) == 3, "two epochs' and the final one"
    for path in models:
        assert (third.output / path).read_bytes() == (undisturbed.output / path).read_bytes()


def test_a_snapshot_replaces_the_one_before_and_never_a_later_one(job: Callable[[str], TrainJob], bucket: Bucket) -> None:
    source, copied = job("source"), job("copied")
    started = ranks.Ranks(source, 1, ranks.at_step(9, 0, signal.SIGTERM))
    assert started.codes() == [0], started.log()
    earlier, later = complete(source.output)
    with mirrored(copied, [], poll=0.05):
        for checkpoint in (earlier, later):
            shutil.copytree(checkpoint, copied.output / "checkpoints" / checkpoint.name)
            process_trees.eventually(
                lambda: f"{PLACE}/manifest.json" in bucket.names() and snapshot(bucket)["step"] == int(checkpoint.name[-8:])  # noqa: B023
            )
    process_trees.eventually(lambda: len(bucket.names()) == 1 + len(snapshot(bucket)["files"]))
    assert {name.split("/")[1] for name in snapshot(bucket)["files"] if "/" in name} == {later.name}
    shutil.rmtree(copied.output / "checkpoints" / later.name)
    with mirrored(copied, [], poll=0.05):
        pass
    assert snapshot(bucket)["step"] == int(later.name[-8:])


def test_a_damaged_snapshot_is_told_and_not_used(job: Callable[[str], TrainJob], bucket: Bucket) -> None:
    first, second = job("one"), job("two")
    train(first, kill_at=10)
    listed = snapshot(bucket)["files"]
    name = next(name for name in listed if name.endswith(".safetensors"))
    bucket.put(f"{PLACE}/{listed[name]['sha256']}", b"damaged")
    told = train(second, kill_at=10)
    assert told[0] == (
        f"{bucket.address}/{PLACE}: {name} does not have the sha256 of the manifest; "
        "training does not go on from a checkpoint there."
    )
    assert ranks.events(second.output, "start")
    assert train(job("three"))[0].startswith("step "), "the second machine's is there now"


def test_the_snapshot_of_another_training_is_not_used(job: Callable[[str], TrainJob], bucket: Bucket) -> None:
    train(job("one"), kill_at=10)
    other = job("two")
    checkpoint_mirror.Mirror(Remote(bucket.address), PLACE, other.output, "another", on_line=pytest.fail, patience=1.0).fetch()
    assert list(other.output.iterdir()) == []


def test_with_the_storage_away_training_goes_on_and_it_is_told_once(
    job: Callable[[str], TrainJob], bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(f"http://127.0.0.1:{free_port()}", monkeypatch)
    away = job("one")
    told: list[str] = []
    copy = mirrored(away, told, poll=0.05)
    copy.fetch()
    with copy:
        started = ranks.Ranks(away, 1, ranks.at_step(9, 0, signal.SIGTERM))
        assert started.codes() == [0], started.log()
    assert ranks.status(away.output)["state"] == "preempted"
    assert [line.partition("; ")[2] for line in told if "; " in line] == [
        "training does not go on from a checkpoint there.",
        "training goes on, and its checkpoints are uploaded when that works again.",
    ]


DRIVER = """
import json, sys
from talaria.config import load as settings
from talaria.stages import run as stages
from talaria.store.store import Output, Store
store, tree, upstream = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
outputs = {name: Output.from_json(value) for name, value in upstream.items()}
print(json.dumps(stages.run_stage("train", settings.parse(tree, "test"), Store(store), outputs).as_json()))
"""


@pytest.fixture
def mark() -> Iterator[str]:
    mark = process_trees.new_mark()
    yield mark
    process_trees.kill_marked(mark)


@pytest.mark.stack
def test_the_stage_goes_on_in_another_store_and_its_output_takes_the_place_of_the_snapshot(
    tmp_path: Path, bucket: Bucket, mark: str
) -> None:
    """Through the launcher, as the command line and Airflow do it."""
    config = tiny_pipeline.config(base={"shape": tiny_pipeline.SLOWER}, train=SETTINGS | {"num_processes": 1, "epochs": 8})
    upstream = tiny_pipeline.prepare(Store(tmp_path / "inputs"), config)

    def start(machine: str) -> subprocess.Popen[str]:
        inputs = json.dumps({name: upstream[name].as_json() for name in ("tokenize", "base")})
        command = [sys.executable, "-c", DRIVER, str(tmp_path / machine), config.model_dump_json(), inputs]
        tracking = f"sqlite:///{tmp_path}/mlflow.db"
        env = os.environ | {process_trees.MARK: mark, "MLFLOW_TRACKING_URI": tracking}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)

    def snapshots() -> list[str]:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.5)  # looking takes the processor from those who work
        return [name for name in bucket.names() if name.startswith(".work/train-") and name.endswith("/manifest.json")]

    first = start("one")
    [uploaded] = process_trees.eventually(snapshots, within=120)
    process_trees.kill_marked(mark)  # the machine is gone
    first.communicate()
    second = start("two")
    told, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert "is fetched from" in errors
    output = Output.from_json(json.loads(told))
    undisturbed = TrainJob(config, upstream["tokenize"].path, upstream["base"].path, tmp_path / "undisturbed")
    ranks.run(undisturbed)
    assert ranks.steps(output.path) == ranks.steps(undisturbed.output)
    assert output.facts["starts"] == 2
    [left] = (tmp_path / "one").glob(".work/train-*/mlflow.json")
    assert read_object(output.path / "mlflow.json")["training_id"] == read_object(left)["training_id"]
    names = bucket.names()
    assert f"train/{output.key[:32]}/manifest.json" in names
    assert not any(name.startswith(uploaded.rpartition("/")[0]) for name in names)
    assert Store(tmp_path / "three").find("train", output.key) is not None
