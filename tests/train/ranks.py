"""Ranks as forked processes: the trainer's own entry point, with the environment that a launcher would set.

Forking after the imports makes a run of a few ranks a matter of a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import talaria.train.trainer  # noqa: F401 (before the fork, once for all ranks)
import torch
from talaria.train.__main__ import train
from talaria.train.batching.dataloader import Prepared
from talaria.train.train_state import TrainJob
from talaria.train.train_step import StepResult, TrainStep


class Ranks:
    """A started run; `codes` waits for its end."""

    def __init__(self, job: TrainJob, size: int, before: Callable[[int], None] | None = None) -> None:
        job.output.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("fork")
        self.job = job
        self.processes = [context.Process(target=_rank, args=(job, rank, size, port, before)) for rank in range(size)]
        for process in self.processes:
            process.start()

    def codes(self, timeout: float = 90) -> list[int | None]:
        """Exit codes; what has not ended by then is killed and counts as None."""
        deadline = time.monotonic() + timeout
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self) -> None:
        for process in self.processes:
            if process.is_alive():
                process.kill()
            process.join()

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.job.output.glob("rank-*.log")))


def run(job: TrainJob, size: int = 1, before: Callable[[int], None] | None = None) -> Ranks:
    """Train to the end; every rank must exit with 0."""
    ranks = Ranks(job, size, before)
    codes = ranks.codes()
    assert codes == [0] * size, ranks.log()
    return ranks


def at_step(step: int, rank: int, number: signal.Signals) -> Callable[[int], None]:
    """For `before`: this rank signals itself when it is through with the step, so that no clock decides where a run ends."""

    def before(me: int) -> None:
        if me != rank:
            return
        original = TrainStep.run

        def run(self: TrainStep, prepared: Prepared, *args: Any) -> StepResult:
            outcome = original(self, prepared, *args)
            if prepared.plan.index + 1 == step:
                os.kill(os.getpid(), number)
            return outcome

        TrainStep.run = run  # type: ignore[method-assign]

    return before


def _rank(job: TrainJob, rank: int, size: int, port: int, before: Callable[[int], None] | None) -> None:
    log = os.open(job.output / f"rank-{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": os.environ.get("ACCELERATE_USE_CPU", "true"),
    }
    torch.set_num_threads(1)
    if before:
        before(rank)
    code = train(job)
    sys.stdout.flush()
    os._exit(code)


def read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


TIMING = {"seconds", "data_wait_seconds", "tokens_per_second", "time", "mfu", "memory_bytes"}


def steps(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what time decides."""
    return [{k: v for k, v in record.items() if k not in TIMING} for record in read_lines(folder / "metrics.jsonl")]


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_lines(folder / "events.jsonl") if record["kind"] == kind]
