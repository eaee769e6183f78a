"""What ends a run, and how it says so."""

from __future__ import annotations

import json
import math
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from talaria.config.data_settings import Tokenize
from talaria.tokenization import stage as encode
from talaria.tokenization.dataset import open_tokens
from talaria.train import trainer
from talaria.train.build import Components
from talaria.train.checkpoint.writer_process import WriterProcess
from talaria.train.telemetry.loss_spikes import SpikeDetector
from talaria.train.telemetry.watchdog import EXIT_HANG
from talaria.train.train_state import TrainJob
from talaria.train.train_step import TrainStep
from transformers import AutoModelForCausalLM

from tests.train import ranks


def test_a_stop_signal_to_one_rank_stops_all_at_one_step(job: Callable[..., TrainJob]) -> None:
    stopped = job(epochs=3, num_processes=2)
    started = ranks.Ranks(stopped, 2, ranks.at_step(5, 1, signal.SIGTERM))
    assert started.codes() == [0, 0], started.log()
    status = ranks.status(stopped.output)
    assert status["state"] == "preempted"
    assert status["step"] == ranks.steps(stopped.output)[-1]["step"] == 6
    assert (stopped.output / "checkpoints" / f"step-{status['step']:08d}" / "complete.json").exists()
    ranks.run(stopped, 2)
    assert ranks.status(stopped.output)["state"] == "done"
    assert [step["step"] for step in ranks.steps(stopped.output)] == list(range(1, status["total_steps"] + 1))


ODD_ROW = 17


@pytest.fixture
def tokens(folders: dict[str, Path], tmp_path: Path) -> Path:
    """40 conversations; only that of ODD_ROW has an omega."""
    turns = [("Say \u03a9", "no") if row == ODD_ROW else (f"Say {row % 7}", f"{row % 7}") for row in range(40)]
    messages = [[{"role": "user", "content": asked}, {"role": "assistant", "content": answer}] for asked, answer in turns]
    pl.DataFrame({"messages": messages}).write_parquet(tmp_path / "messages.parquet")
    encode.tokenize(tmp_path / "messages.parquet", folders["base"], tmp_path / "tokens", Tokenize())
    return tmp_path / "tokens"


@pytest.fixture
def poisoned(folders: dict[str, Path], tokens: Path, tmp_path: Path) -> Path:
    """A base model with an embedding of its own: a tied one's NaN would be in everybody's logits through the head."""
    base = tmp_path / "poisoned"
    shutil.copytree(folders["base"], base)
    (base / "manifest.json").unlink()
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    (base / "model.safetensors").unlink()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    return base


def nan_in_the_embedding_of(token: int) -> Callable[[int], None]:
    """For `before`: memory goes bad once the model is loaded, as weights that hold a NaN on the disk are refused."""

    def before(rank: int) -> None:
        original = trainer.build

        def build(*args: Any) -> Components:
            components = original(*args)
            components.model.core.model.embed_tokens.weight.data[token] = math.nan
            return components

        trainer.build = build

    return before


def test_a_nan_stops_all_ranks_before_the_update(job: Callable[..., TrainJob], tokens: Path, poisoned: Path) -> None:
    data = open_tokens(tokens)["train"]
    assert data is not None
    of_row = {row: set(data.gather([index])[0].tolist()) for index, row in enumerate(data.rows.tolist())}
    token = max(of_row[ODD_ROW] - set().union(*(ids for row, ids in of_row.items() if row != ODD_ROW)))
    sick = job(tokens=tokens, base=poisoned, save_every=1, global_batch=8, max_tokens_per_device=48)
    started = ranks.Ranks(sick, 2, nan_in_the_embedding_of(token))
    assert started.codes() == [1, 1], started.log()
    done = ranks.steps(sick.output)
    status = ranks.status(sick.output)
    assert (status["state"], status["kind"]) == ("failed", "user")
    assert f"step {len(done) + 1}: loss nan" in status["reason"]
    (failed,) = ranks.events(sick.output, "failed")
    assert ODD_ROW in failed["rows"]
    assert len(failed["rows"]) < 16, "the rows of the bad micro-batches, not all of the step's"
    checkpoints = list(sick.output.glob("checkpoints/*/*.safetensors"))
    assert len(checkpoints) == 2 * min(2, len(done))
    for file in checkpoints:
        bad = [name for name, tensor in load_file(file).items() if not tensor.isfinite().all()]
        assert [name for name in bad if "param.hf.model.embed_tokens" not in name] == []


def test_a_rank_that_stands_still_ends_the_run_with_stacks(job: Callable[..., TrainJob]) -> None:
    stuck = job(epochs=3, hang_timeout=5)
    started = ranks.Ranks(stuck, 2, ranks.at_step(3, 1, signal.SIGSTOP))
    started.processes[0].join(30)
    assert started.processes[0].exitcode == EXIT_HANG
    started.kill()
    log = (stuck.output / "rank-0.log").read_text()
    assert "no progress for 5 seconds" in log
    assert "in _accumulate" in log or "in sum" in log or "in reduce" in log
    status = ranks.status(stuck.output)
    assert (status["state"], status["kind"]) == ("failed", "crash")


def test_the_others_end_when_a_rank_dies(job: Callable[..., TrainJob]) -> None:
    orphaned = job(epochs=3)
    started = ranks.Ranks(orphaned, 2, ranks.at_step(3, 1, signal.SIGKILL))
    started.processes[0].join(30)
    assert started.processes[0].exitcode == 1
    assert ranks.status(orphaned.output)["kind"] == "crash"


def test_a_full_disk_keeps_the_last_good_checkpoint(job: Callable[..., TrainJob]) -> None:
    def small_files(rank: int) -> None:
        # Checkpoint files are larger than this, everything else is smaller: writing one fails as on a full disk.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        original = WriterProcess.__init__

        def start(self: WriterProcess, *args: Any) -> None:
            original(self, *args)
            for pid in (0, self.pid):  # not before: the block of memory is larger too
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))

        WriterProcess.__init__ = start  # type: ignore[method-assign]

    full = job(epochs=3, save_every=4)
    started = ranks.Ranks(full, 2, ranks.at_step(8, 0, signal.SIGTERM))
    assert started.codes() == [0, 0], started.log()
    assert complete(full.output) == ["step-00000008", "step-00000009"]
    filled = ranks.Ranks(full, 2, small_files)
    assert filled.codes() == [2, 1], filled.log()
    assert complete(full.output) == ["step-00000008", "step-00000009"]
    warnings = [event["message"] for event in ranks.events(full.output, "warning")]
    assert warnings
    assert all("could not be saved: rank 0: the disk is full" in warning for warning in warnings)
    assert len(ranks.steps(full.output)) == 31, "training went on without"
    status = ranks.status(full.output)
    assert (status["state"], status["kind"]) == ("failed", "user")
    assert "the disk is full; free space" in status["reason"]
    assert not (full.output / "model").exists()
    ranks.run(full, 2)
    assert ranks.events(full.output, "resume")[-1]["message"].startswith("from step-00000009")
    assert ranks.status(full.output)["state"] == "done"


def complete(output: Path) -> list[str]:
    return sorted(marker.parent.name for marker in output.glob("checkpoints/*/complete.json"))


@pytest.mark.parametrize(
    ("whose", "what"), [(TrainStep, "run"), (AutoModelForCausalLM, "from_pretrained")], ids=["a step", "loading the base"]
)
def test_too_little_memory_says_what_to_lower(job: Callable[..., TrainJob], whose: type, what: str) -> None:
    def full_memory(rank: int) -> None:
        def run(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.00 GiB free.")

        setattr(whose, what, run)

    large = job(activation_checkpointing="selective")
    started = ranks.Ranks(large, 1, full_memory)
    assert started.codes() == [2]
    status = ranks.status(large.output)
    assert (status["state"], status["kind"]) == ("failed", "user")
    assert "lower train.max_tokens_per_device (now 512)" in status["reason"]
    assert "train.activation_checkpointing (now selective" in status["reason"]


@pytest.mark.parametrize(
    ("settings", "size", "message"),
    [
        ({"max_tokens_per_device": 16}, 1, "do not fit into train.max_tokens_per_device (16)"),
        ({"num_processes": 4}, 2, "asks for 4 ranks, but 2 started"),
        ({"sharding": "hybrid", "shard_size": 3}, 2, "cannot be split into groups of 3"),
        ({"context_parallel_size": 2}, 1, "context_parallel_size is 2, but 1 ranks cannot be split into groups of so many"),
        ({"context_parallel_size": 2, "kernels": "plain"}, 2, "but the layers run as transformers wrote them (train.kernels"),
    ],
)
def test_bad_settings_end_with_a_sentence(
    job: Callable[..., TrainJob], settings: dict[str, object], size: int, message: str
) -> None:
    bad = job(**settings)
    started = ranks.Ranks(bad, size)
    codes = started.codes()
    assert codes[0] == 2, started.log()
    assert all(codes), "others may first find rank 0 gone, which hosts their meeting point here"
    log = (bad.output / "rank-0.log").read_text()
    assert message in log
    assert "Traceback" not in log
    status = ranks.status(bad.output)
    assert (status["state"], status["kind"]) == ("failed", "user")
    assert message in status["reason"]


def test_spikes_stand_out() -> None:
    detector = SpikeDetector()
    assert not any(detector.spiked(2.0 + 0.05 * math.sin(step)) for step in range(100))
    assert detector.spiked(3.0)
    assert not detector.spiked(2.0)
