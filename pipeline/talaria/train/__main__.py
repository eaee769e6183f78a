"""One rank of a training run.

    accelerate launch ... -m talaria.train --config config.json --tokens DIR --model DIR --output DIR

Exits 0 when the run is done or was told to stop (status.json says which), 2 when the user has to change something,
1 on any other failure, 70 on a hang.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from talaria.common.errors import UserError
from talaria.common.files import disk_is_full
from talaria.common.imports import quick_imports
from talaria.config.load import parse
from talaria.process.reaper import die_with_parent
from talaria.process.supervisor import MARK
from talaria.runs.folder import DYING, GO, HOST_MEMORY, RunFolder
from talaria.train.telemetry.console import say
from talaria.train.telemetry.watchdog import NotFinite, OutOfMemory, StopSignal, Watchdog
from talaria.train.train_state import TrainJob

_WITHOUT = ("PIL", "boto3", "matplotlib", "pandas", "scipy", "sklearn", "torchaudio", "torchvision")
"""Packages that transformers and accelerate import where they are there, for models of images and services that are not used."""
_LOOK = 0.05
"""Seconds between looks for the file that lets a rank in waiting go on."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m talaria.train", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the resolved configuration, as JSON")
    for name in ("tokens", "model", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args(arguments)
    config = parse(json.loads(args.config.read_text()), str(args.config))
    return train(TrainJob(config, args.tokens, args.model, args.output))


def train(job: TrainJob) -> int:
    """Run this process's rank (RANK, WORLD_SIZE and so on in the environment); returns the exit code."""
    stop = StopSignal().listen()
    if MARK in os.environ:  # launched beneath a reaper: should it and the launcher be killed, this rank saves and leaves too
        die_with_parent()
    go = os.environ.pop(GO, None)
    if go and not _waited(Path(go), job, stop):
        return 0
    with _announced():
        return _train(job, stop, takes_over=bool(go))


def _waited(go: Path, job: TrainJob, stop: StopSignal) -> bool:
    """Import what the job needs, and wait until this rank is needed (True) or told to stop."""
    with quick_imports(_WITHOUT):
        _import_for(job)
        _find_devices()
    ready = False
    while not go.exists():
        if stop.name:
            return False
        if not ready and go.with_suffix(DYING).exists():
            _lock_what_is_left(job)
            ready = True
        time.sleep(_LOOK)
    return True


def _lock_what_is_left(job: TrainJob) -> None:
    """Page-lock the snapshot of this rank's predecessor while it dies: both take seconds where there are tens of GB."""
    from talaria.train.build import host_memory
    from talaria.train.checkpoint.host_block import lock_ahead
    from talaria.train.checkpoint.snapshot import newest
    from talaria.train.distributed.process_group import choose_device

    memory = host_memory(job.config.train)
    left = newest(memory, int(os.environ.get("RANK", "0"))) if memory else None
    if left:
        with contextlib.suppress(RuntimeError, OSError):  # no room on the GPU for two yet; or the launch is over
            lock_ahead(left, choose_device(int(os.environ.get("LOCAL_RANK", "0"))))


def _import_for(job: TrainJob) -> None:
    """Import all that the job will want: later it would come without `quick_imports`."""
    import talaria.train.trainer  # noqa: F401
    from talaria.train.model.loading import import_family

    import_family(job.base)


def _find_devices() -> None:
    """Do what comes before the first use of a GPU and takes nothing of it."""
    import torch

    from talaria.train.kernels.kernel_launch import hash_compiler

    if torch.cuda.is_available():
        hash_compiler()


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Leave this rank's pid where the launcher looks: should it still be there when the process is gone, the rank was killed."""
    memory = os.environ.get(HOST_MEMORY)
    note = Path(memory, f"rank-{os.environ.get('LOCAL_RANK', '0')}.pid") if memory else None
    if note:
        note.write_text(str(os.getpid()))
    yield
    if note:
        note.unlink(missing_ok=True)


def _train(job: TrainJob, stop: StopSignal, *, takes_over: bool) -> int:
    job.output.mkdir(parents=True, exist_ok=True)
    folder, timeout = RunFolder(job.output), job.config.train.hang_timeout
    rank = int(os.environ.get("RANK", "0"))
    with quick_imports():
        import torch

        from talaria.train.distributed import process_group as ranks
    watchdog = Watchdog(timeout, lambda reason: _fail(folder, f"rank {rank}: {reason}", "crash")).start()
    try:
        # The watchdog is the one that ends a hang; the collectives' own limit is only there should it fail.
        with ThreadPoolExecutor(1, thread_name_prefix="join") as beside, quick_imports(_WITHOUT):
            joining = beside.submit(ranks.join, max(120.0, 4 * timeout), takes_over=takes_over)
            _import_for(job)  # seconds, in which the ranks meet
            from talaria.train.trainer import Trainer

            group = joining.result()
        ranks.use(group.device)  # each thread has a current device of its own
        Trainer(job, group, stop, watchdog).run()
    except UserError as error:
        _fail(folder, str(error), "user")
        say(f"rank {rank}: {error}", sys.stderr)
        return 2
    except NotFinite as error:
        # The same data in the same state would end the same way: trying again does not help.
        _fail(folder, str(error), "user", rows=error.rows)
        say(f"rank {rank}: {error}", sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        detail = str(error).partition(". ")[0]
        message = str(OutOfMemory(job.config.train.max_tokens_per_device, job.config.train.activation_checkpointing, detail))
        _fail(folder, message, "user")
        say(f"rank {rank}: {message}", sys.stderr)
        return 2
    except Exception as error:
        if disk_is_full(error):
            message = f"{job.output}: the disk is full; free space, and the next start goes on from the last checkpoint."
            _fail(folder, message, "user")
            say(f"rank {rank}: {message}", sys.stderr)
            return 2
        _fail(folder, f"rank {rank}: {type(error).__name__}: {error}", "crash")
        traceback.print_exc()
        return 1
    finally:
        watchdog.stop()
    ranks.leave()
    return 0


def _fail(folder: RunFolder, reason: str, kind: Literal["user", "crash"], **more: object) -> None:
    step = folder.status().get("step", 0)
    with contextlib.suppress(OSError):  # a full disk must not hide the failure itself, which stderr has too
        folder.fail(reason, kind, step, **more)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if code:
        # Threads that wait for ranks that are gone, inside NCCL or gloo, would keep a normal exit waiting too.
        os._exit(code)
    sys.exit(0)
