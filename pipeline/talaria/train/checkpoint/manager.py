"""Checkpoints: in parts, written beside the training, whole or recognisably not, and readable by any number of ranks.

    checkpoints/step-00001000/
        rank-00000-000.safetensors ...   what rank 0 wrote, and so on: stretches of flattened tensors
        complete.json                    written last: progress, identity, size and sha256 of each file

Tensors are in safetensors files and all else is JSON, so that reading a checkpoint, whoever wrote it, never unpickles anything.
Between the device and the disk lies a block of host memory; while it is whole, it is a snapshot from which ranks that died are
started again without the disk.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from talaria.common.files import disk_is_full, file_digest, write_atomically
from talaria.runs.folder import MARKER, step_folder
from talaria.train.checkpoint.reader import read
from talaria.train.checkpoint.snapshot import Snapshot
from talaria.train.checkpoint.staging import Staging
from talaria.train.checkpoint.writer_process import WriterProcess
from talaria.train.distributed.process_group import ProcessGroup, use
from talaria.train.telemetry.watchdog import Alive
from talaria.train.train_state import TrainState

FORMAT = 2
"""1, until November 2026, held rows of tensors; it is still read."""


class CheckpointError(OSError):
    """A checkpoint that could not be written. The ones before it are untouched."""


@dataclass(frozen=True)
class FoundCheckpoint:
    folder: Path | None
    """None: it is in this machine's memory."""
    progress: dict[str, Any]

    def __str__(self) -> str:
        return self.folder.name if self.folder else f"the snapshot of step {self.progress['step']} in memory"


class CheckpointManager:
    """One run's checkpoints. Collective: every rank calls the same methods in the same order."""

    def __init__(self, root: Path, group: ProcessGroup, staging: Staging, *, identity: str, keep: int, alive: Alive) -> None:
        self.root, self.group, self.staging, self.identity, self.keep, self.alive = root, group, staging, identity, keep, alive
        self.snapshot = Snapshot(staging, identity, group.size)
        self.writer = WriterProcess(staging.block, group.rank)
        # Saving talks between ranks while training does: it needs a group, and so an order of messages, of its own.
        self._gloo = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=use, initargs=(group.device,))
        self._pending: Future[None] | None = None
        self._saved_step = -1

    def save(self, progress: dict[str, Any], *, patience: float | None = None) -> bool:
        """Copy the state to host memory, then write it in the background. Raises CheckpointError for the save before.

        A step that is saved already, or that the run resumed from, is left as it is. The training is held up for `patience`
        seconds at most (None: for as long as it takes): returns False, on every rank, where the save before is still being
        written then, or the block of host memory is still being made.
        """
        if not self._settled(patience):
            return False
        if progress["step"] != self._saved_step:
            self._saved_step = progress["step"]
            self._stage(lambda: self._write(self.place(progress["step"]), progress), progress)
        return True

    def keep_in_memory(self, progress: dict[str, Any]) -> None:
        """Copy the state to host memory only, unless a save is still being written. Raises CheckpointError for that save."""
        if self.snapshot.kept and progress["step"] != self._saved_step and self._settled(0.0):
            self._stage(lambda: None, progress)

    def _stage(self, then: Callable[[], None], progress: dict[str, Any]) -> None:
        self.snapshot.void()
        self.staging.begin()

        def finish() -> None:
            self.staging.copy()
            self.snapshot.holds(progress)
            then()

        self._pending = self._thread.submit(finish)

    def fence(self) -> None:
        """Let no update change what a save still reads: in copying, and in writing where the state itself is what is written."""
        self.staging.fence()
        if self.staging.is_state and self._pending:
            self._wait(self._pending)

    def _settled(self, patience: float | None) -> bool:
        """Wait, at most `patience` seconds, until every rank is through with the save under way; whether they are, and their
        blocks of host memory are there."""
        if patience is not None:
            writing = self._pending is not None and not wait([self._pending], timeout=patience).done
            busy = writing or not self.staging.block.made
            if self.group.sum([float(busy)]) != [0.0]:
                return False
        self.finish()
        return True

    def finish(self) -> None:
        """Wait for the save under way; on every rank, raise CheckpointError if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._wait(pending)
        try:
            pending.result()
        except CheckpointError:
            self._saved_step = -1
            raise

    def _wait(self, pending: Future[None]) -> None:
        written = -1
        while not wait([pending], timeout=1.0).done:
            size = _written_bytes(self.root)
            if size != written:  # slow is not stuck
                written = size
                self.alive()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.writer.close()

    def place(self, step: int) -> Path:
        return step_folder(self.root, step)

    def load(self, found: FoundCheckpoint) -> None:
        """Read a checkpoint, from memory or the disk, into the parameters and the optimiser. Collective."""
        if found.folder:
            self.snapshot.void()
            read(found.folder, [(part, self.staging.view(part)) for part in self.staging.parts])
            self._saved_step = found.progress["step"]
        self.staging.put_back()
        self.snapshot.holds(found.progress)

    def newest(self, warn: Callable[[str], None]) -> FoundCheckpoint | None:
        """The newest checkpoint that is whole and ours. Collective; `warn` hears, on rank 0, why others were passed over."""
        in_memory = self._in_memory()
        for folder in self.group.broadcast(sorted(self.root.glob("step-*"), reverse=True)):
            if in_memory and self.place(in_memory.progress["step"]) >= folder:
                break
            found, fault = self._inspect(folder)
            faults = [fault for fault in self.group.gather(fault) if fault]
            if not faults and found:
                return found
            if self.group.is_main:
                warn(f"checkpoint {folder.name} is passed over: {faults[0]}")
        return in_memory

    def _in_memory(self) -> FoundCheckpoint | None:
        """The snapshot, where each rank's block holds the same step."""
        first, *others = self.group.gather(self.snapshot.found())
        return FoundCheckpoint(None, first) if first and all(other == first for other in others) else None

    def _inspect(self, folder: Path) -> tuple[FoundCheckpoint | None, str | None]:
        """The checkpoint, or what is wrong with it; ranks share the reading of its files."""
        try:
            marker = json.loads((folder / MARKER).read_text())
            if marker["format"] not in (1, FORMAT):
                return None, f"its format is {marker['format']}, not {FORMAT}"
            if marker["identity"] != self.identity:
                return None, "it belongs to a run with other data, another base model or other settings"
            TrainState.of(marker["progress"])
            if strange := {path.name for path in folder.glob("*.safetensors")} - set(marker["files"]):
                return None, f"{min(strange)} does not belong to it"
            for name, file in sorted(marker["files"].items()):
                if (folder / name).stat().st_size != file["bytes"]:
                    return None, f"{name} is truncated"
            for name, file in itertools.islice(sorted(marker["files"].items()), self.group.rank, None, self.group.size):
                if file_digest(folder / name) != file["sha256"]:
                    return None, f"{name} is damaged"
                self.alive()
            return FoundCheckpoint(folder, dict(marker["progress"])), None
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            return None, "its saving was cut off" if missing == MARKER else f"{missing} is missing"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return None, f"{MARKER} is not readable ({error})"

    def _write(self, folder: Path, progress: dict[str, Any]) -> None:
        # The writer of another rank makes the folder too: it must not do so while it is being cleared.
        self._agree(folder, self._clear(folder) if self.group.is_main else [])
        fault, files = None, {}
        try:
            files = self.writer.write(folder, self.staging.files())
        except OSError as error:
            fault = f"rank {self.group.rank}: {error}"
        parts: list[Any] = [None] * self.group.size
        dist.all_gather_object(parts, (fault, files), group=self._gloo)
        faults = [fault for fault, _ in parts if fault]
        if self.group.is_main and not faults:
            every = {name: file for _, part in parts for name, file in part.items()}
            faults = self._complete(folder, {"format": FORMAT, "identity": self.identity, "progress": progress, "files": every})
        self._agree(folder, faults)
        if self.group.is_main:
            self._prune()

    def _agree(self, folder: Path, faults: list[str]) -> None:
        """Raise CheckpointError, on every rank, for what rank 0 found wrong; nothing is left of the checkpoint then."""
        box: list[Any] = [faults]
        dist.broadcast_object_list(box, src=0, group=self._gloo)
        if box[0]:
            if self.group.is_main:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(f"{folder.name} could not be saved: {box[0][0]}")

    def _clear(self, folder: Path) -> list[str]:
        """Make the folder. What interrupted saves left in it or beside it goes first: the disk may have no room for both."""
        try:
            for other in {folder, *self.root.glob("step-*")}:
                if not (other / MARKER).exists() or other == folder:
                    shutil.rmtree(other, ignore_errors=True)
            folder.mkdir(parents=True)
        except OSError as error:
            return [_reason(error)]
        return []

    def _complete(self, folder: Path, marker: dict[str, Any]) -> list[str]:
        try:
            write_atomically(folder / MARKER, json.dumps(marker, indent=1))
        except OSError as error:
            return [_reason(error)]
        return []

    def _prune(self) -> None:
        """Keep the newest `keep` that are complete; drop older ones and what interrupted saves left."""
        complete = [folder for folder in sorted(self.root.glob("step-*")) if (folder / MARKER).exists()]
        kept = set(complete[-self.keep :])
        for folder in self.root.glob("step-*"):
            if folder not in kept and folder < complete[-1]:
                (folder / MARKER).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)


def _written_bytes(root: Path) -> int:
    total = 0
    for path in root.glob("*/*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            total += path.stat().st_size
    return total


def _reason(error: OSError) -> str:
    """The cause that a user can act on."""
    return "the disk is full" if disk_is_full(error) else f"{type(error).__name__}: {error}"
