"""Killed at any moment, a run goes on as if nothing had been."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from talaria.runs.folder import HOST_MEMORY
from talaria.train.batching.dataloader import Prepared
from talaria.train.checkpoint.host_block import HostBlock
from talaria.train.checkpoint.manager import CheckpointManager
from talaria.train.checkpoint.save_clock import SaveClock
from talaria.train.checkpoint.writer_process import WriterProcess
from talaria.train.distributed.replicas import ReplicasDiffer, all_equal, for_sum, weights_digest
from talaria.train.model import loading
from talaria.train.train_state import TrainJob
from talaria.train.train_step import TrainStep

from tests.train import ranks

# 31 steps over 3 epochs of 162 conversations; epochs end within steps 11 and 21.
SETTINGS: dict[str, Any] = {"epochs": 3, "save_every": 4, "max_tokens_per_device": 512, "num_processes": 2}


@pytest.fixture(scope="module")
def uninterrupted(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support import tiny_pipeline

    output = tmp_path_factory.mktemp("uninterrupted")
    ranks.run(TrainJob(tiny_pipeline.config(train=SETTINGS), folders["tokenize"], folders["base"], output), 2)
    return output


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if k not in ranks.TIMING} for record in ranks.read_lines(path)]


def test_killed_again_and_again_it_writes_the_same_metrics(job: Callable[..., TrainJob], uninterrupted: Path) -> None:
    draw = random.Random(7)
    broken = job(**SETTINGS)
    for step in (1, 6, 12, 13, 22, 27):
        started = ranks.Ranks(broken, 2, ranks.at_step(step, draw.randrange(2), signal.SIGKILL))
        codes = started.codes()
        assert -signal.SIGKILL in codes, started.log()
        assert 0 not in codes
    ranks.run(broken, 2)
    assert ranks.steps(broken.output) == ranks.steps(uninterrupted)
    assert without_times(broken.output / "evals.jsonl") == without_times(uninterrupted / "evals.jsonl")
    assert ranks.events(broken.output, "resume")
    weights = "model/model.safetensors"
    assert (broken.output / weights).read_bytes() == (uninterrupted / weights).read_bytes()


@pytest.mark.usefixtures("no_room_for_whole_weights")
def test_it_goes_on_with_fewer_and_more_ranks(job: Callable[..., TrainJob], uninterrupted: Path) -> None:
    settings = {**SETTINGS, "num_processes": 0}
    for size, sharding, stop_at in ((2, "shard", 9), (1, "replicate", 18), (4, "hybrid", None)):
        moved = job(**settings, sharding=sharding, shard_size=2 if sharding == "hybrid" else 0)
        started = ranks.Ranks(moved, size, ranks.at_step(stop_at, 0, signal.SIGTERM) if stop_at else None)
        assert started.codes() == [0] * size, started.log()
    assert ranks.status(moved.output)["state"] == "done"
    found, expected = ranks.steps(moved.output), ranks.steps(uninterrupted)
    assert [step["rows_checksum"] for step in found] == [step["rows_checksum"] for step in expected]
    assert [step["loss"] for step in found] == pytest.approx([step["loss"] for step in expected], rel=1e-5)
    assert [event["world_size"] for event in ranks.events(moved.output, "resume")] == [1, 4]


def test_a_save_that_is_due_before_its_host_memory_is_made_comes_after(job: Callable[..., TrainJob]) -> None:
    started = job(max_steps=4, save_every=2, num_processes=2)
    made = iter([False])

    def before(me: int) -> None:
        if me == 1:
            HostBlock.made = property(lambda self: next(made, True))  # type: ignore[assignment]

    ranks.run(started, 2, before)
    assert [event["step"] for event in ranks.events(started.output, "checkpoint")] == [3, 4]


def test_what_an_interrupted_save_left_is_gone_before_the_next_is_written(job: Callable[..., TrainJob]) -> None:
    started = job(max_steps=2, save_every=2)
    cut_off = started.output / "checkpoints" / "step-00000001"
    cut_off.mkdir(parents=True)

    def before(me: int) -> None:
        original = WriterProcess.write

        def write(self: WriterProcess, folder: Path, *more: Any) -> Any:
            print("writes beside", sorted(path.name for path in folder.parent.iterdir()), flush=True)
            return original(self, folder, *more)

        WriterProcess.write = write  # type: ignore[method-assign]

    ranks.run(started, 1, before)
    assert "writes beside ['step-00000002']" in (started.output / "rank-0.log").read_text()


def test_a_finished_run_is_left_as_it_is(job: Callable[..., TrainJob]) -> None:
    done = job(max_steps=2)
    ranks.run(done)
    before = {path: path.stat().st_mtime_ns for path in done.output.rglob("*") if path.suffix != ".log"}
    ranks.run(done)
    assert {path: path.stat().st_mtime_ns for path in done.output.rglob("*") if path.suffix != ".log"} == before


def test_another_run_in_the_folder_is_refused(job: Callable[..., TrainJob]) -> None:
    ranks.run(job(max_steps=2))
    other = ranks.Ranks(job(max_steps=2, lr=1e-3), 1)
    assert other.codes() == [2]
    assert "holds a run with other data" in other.log()


def tear(folder: Path) -> None:
    (folder / "complete.json").unlink()


def truncate(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def damage(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def lose(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def scramble(folder: Path) -> None:
    (folder / "complete.json").write_text("{")


def estrange(folder: Path) -> None:
    marker = json.loads((folder / "complete.json").read_text())
    (folder / "complete.json").write_text(json.dumps(marker | {"identity": "another"}))


HARMS = [
    (tear, "its saving was cut off"),
    (truncate, "is truncated"),
    (damage, "is damaged"),
    (lose, "is missing"),
    (scramble, "complete.json is not readable"),
    (estrange, "it belongs to a run with other data, another base model or other settings"),
]


def test_bad_checkpoints_are_passed_over(job: Callable[..., TrainJob], uninterrupted: Path) -> None:
    broken = job(**SETTINGS | {"save_every": 1, "keep_last": 7})
    started = ranks.Ranks(broken, 2, ranks.at_step(8, 1, signal.SIGTERM))
    assert started.codes() == [0, 0], started.log()
    *bad, good = sorted((broken.output / "checkpoints").iterdir(), reverse=True)
    assert [folder.name for folder in (*bad, good)] == [f"step-{step:08d}" for step in range(9, 2, -1)]
    for folder, (harm, _) in zip(bad, HARMS, strict=True):
        harm(folder)
    ranks.run(broken, 2)
    warnings = [event["message"] for event in ranks.events(broken.output, "warning")]
    for folder, (_, reason), warning in zip(bad, HARMS, warnings, strict=True):
        assert folder.name in warning
        assert reason in warning
    assert ranks.events(broken.output, "resume")[0]["message"].startswith(f"from {good.name}")
    assert ranks.steps(broken.output) == ranks.steps(uninterrupted)


def snapshots_at_each_step(then: Callable[[int], None]) -> Callable[[int], None]:
    """For `before`: a snapshot after each step, whole before the next begins, so that no thread decides which one is found."""

    def before(me: int) -> None:
        original = CheckpointManager.keep_in_memory

        def keep_in_memory(self: CheckpointManager, progress: dict[str, Any]) -> None:
            original(self, progress)
            if self._copying:
                self._copying.result()

        CheckpointManager.keep_in_memory = keep_in_memory  # type: ignore[method-assign]
        SaveClock.snapshot_due = lambda self: True  # type: ignore[method-assign]
        then(me)

    return before


def reads_no_weights(me: int) -> None:
    """For `before`: the base's weights are not there to be read."""
    loading.load_whole = None  # type: ignore[assignment]


@pytest.fixture
def host_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setenv(HOST_MEMORY, str(folder))
    return folder


@pytest.mark.parametrize(
    ("copies", "harm", "step"),
    [(1, "none", 8), (1, "torn", None), (1, "other ranks", None), (1, "other layout", None), (2, "torn", 7), (2, "writing", 8)],
)
def test_ranks_that_died_take_up_from_the_snapshot_in_memory(
    job: Callable[..., TrainJob], uninterrupted: Path, host_memory: Path, copies: int, harm: str, step: int | None
) -> None:
    """Torn: a rank was killed while it was copying; writing: a checkpoint of step 5 had not been written to the end."""

    def die(me: int) -> None:
        if harm == "writing":
            WriterProcess.write = lambda *_: time.sleep(60)  # type: ignore[assignment, method-assign, return-value]
        ranks.at_step(9, 1, signal.SIGKILL)(me)

    save_every = 5 if harm == "writing" else 1000
    broken = job(**SETTINGS | {"save_every": save_every, "num_processes": 0, "snapshot_copies": copies})
    started = ranks.Ranks(broken, 2, snapshots_at_each_step(die))
    assert -signal.SIGKILL in started.codes(), started.log()
    assert (host_memory / "rank-1.pid").exists()  # by which the launcher learns of it
    notes = [note for note in host_memory.glob("rank-1*.json") if json.loads(note.read_text())["progress"]["step"] == 8]
    if harm == "torn":
        notes[0].unlink()
    if harm == "other layout":
        notes[0].write_text(json.dumps(json.loads(notes[0].read_text()) | {"layout": "another"}))
        assert ranks.Ranks(broken, 2, reads_no_weights).codes() == [1, 1]  # to be started again, by the launcher
    size = 1 if harm == "other ranks" else 2
    ranks.run(broken, size, reads_no_weights if step else None)
    [resumed] = ranks.events(broken.output, "resume") or [{"message": ""}]
    assert resumed["message"].startswith(f"from the snapshot of step {step} in memory") == (step is not None)
    if size == 2:
        assert not list(host_memory.glob("*.pid"))
        assert ranks.steps(broken.output) == ranks.steps(uninterrupted)


def test_a_bit_that_flips_in_one_replica_stops_the_run_before_an_update_is_built_on_it(job: Callable[..., TrainJob]) -> None:
    def before(me: int) -> None:
        original = TrainStep._accumulate

        def accumulate(self: TrainStep, prepared: Prepared, *args: Any) -> torch.Tensor:
            losses = original(self, prepared, *args)
            # Not before the passes, which wait for the weights: those that are still on their way would replace the flipped bit.
            if me == 1 and prepared.plan.index == 3:
                self.optimizer.params[0].detach().view(-1).view(torch.int32)[5] ^= 1 << 12
            return losses

        TrainStep._accumulate = accumulate  # type: ignore[method-assign]

    broken = job(**SETTINGS | {"compare_every": 2})
    started = ranks.Ranks(broken, 2, before)
    assert started.codes() == [1, 1], started.log()
    status = ranks.status(broken.output)
    assert status["kind"] == "crash"
    assert "ReplicasDiffer: step 4: the weights of ranks 0, 1 differ from each other" in status["reason"]
    assert [step["step"] for step in ranks.steps(broken.output)] == [1, 2, 3]


def test_of_more_than_two_replicas_the_odd_one_is_named() -> None:
    assert "the weights of rank 2 differ from the others'" in str(ReplicasDiffer(7, [5, 5, 6, 5]))


def test_any_flipped_bit_changes_the_digest() -> None:
    params = [torch.randn(6, 4), torch.randn(3).bfloat16()]
    digest = weights_digest(params)
    for param in params:
        bits = param.view(-1).view(torch.int16)
        for element in range(len(bits)):
            for bit in (0, 7, 15):
                bits[element] ^= torch.tensor(1 << bit).to(torch.int16)
                assert weights_digest(params) != digest
                bits[element] ^= torch.tensor(1 << bit).to(torch.int16)
    assert weights_digest(params) == digest


@pytest.mark.parametrize(
    ("digests", "equal"), [([2**64 - 1] * 8, True), ([0] * 3, True), ([1, 0, 1], False), ([1 << 63, 0], False)]
)
def test_equal_digests_are_told_by_their_sums(digests: list[int], equal: bool) -> None:
    sums = [sum(column) for column in zip(*map(for_sum, digests), strict=True)]
    assert all_equal(sums, len(digests)) == equal
