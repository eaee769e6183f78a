"""Checkpoints: in parts, written beside the training, whole or recognisably not, and readable by any number of ranks.

    checkpoints/step-00001000/
        rank-00000-000.safetensors ...   what rank 0 wrote, and so on: stretches of flattened tensors
        complete.json                    written last: progress, identity, size and sha256 of each file

Tensors are in safetensors files and all else is JSON, so that reading a checkpoint, whoever wrote it, never unpickles anything.
Between the device and the disk lies a block of host memory; while it is whole, it is a snapshot from which ranks that died are
started again without the disk. Of two blocks one is whole at any time: a rank may die while the other is written over, and the
next snapshot does not wait for the disk.
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
from talaria.train.checkpoint.snapshot import Snapshot, newest_common
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
        del staging.blocks[min(group.gather(len(staging.blocks))) :]
        self._snapshots = [Snapshot(block, staging.parts, identity, group.size) for block in staging.blocks]
        held = [(found or {"step": -1})["step"] for found in (snapshot.found() for snapshot in self._snapshots)]
        staging.lock(sorted(range(len(held)), key=lambda place: -held[place]))  # first the one that will be taken up
        self.writer = WriterProcess(staging.blocks, group.rank)
        # Saving talks between ranks while training does: it needs a group, and so an order of messages, of its own.
        self._gloo = dist.new_group(backend="gloo")
        self._copier = ThreadPoolExecutor(1, thread_name_prefix="snapshot", initializer=use, initargs=(group.device,))
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="checkpoint", initializer=use, initargs=(group.device,))
        self._copying: Future[None] | None = None
        self._writing: Future[None] | None = None
        self._written_from = 0
        """The block from which the save under way is written."""
        self._saved_step = -1

    def save(self, progress: dict[str, Any], *, patience: float | None = None) -> bool:
        """Copy the state to host memory, then write it in the background. Raises CheckpointError for the save before.

        A step that is saved already, or that the run resumed from, is left as it is. The training is held up for `patience`
        seconds at most (None: for as long as it takes): returns False, on every rank, where the save or the copy before is still
        under way then, or host memory is still being made.
        """
        if patience is not None and any(self._under_way(patience)):
            return False
        self.finish()
        if progress["step"] != self._saved_step:
            self._saved_step = progress["step"]
            copied = self._copy(self._other(self.staging.place), progress)
            self._written_from = block = self.staging.place

            def write() -> None:
                copied.result()
                self._write(self.place(progress["step"]), progress, block)

            self._writing = self._saver.submit(write)
        return True

    def keep_in_memory(self, progress: dict[str, Any]) -> None:
        """Copy the state to host memory only, unless no block is free. Raises CheckpointError for a save that has failed."""
        if not self._snapshots[0].kept or progress["step"] == self._saved_step:
            return
        copying, writing = self._under_way(0.0)
        if copying or (writing and len(self._snapshots) == 1):
            return
        if not writing:
            self.finish()
        elif self._copying:
            self._copying.result()  # through, well or not
        self._copy(self._other(self._written_from if writing else self.staging.place), progress)

    def void_snapshots(self) -> None:
        """Let nothing take up from host memory: the state in it may be damaged."""
        for snapshot in self._snapshots:
            snapshot.void()

    def _other(self, place: int) -> int:
        return (place + 1) % len(self._snapshots)

    def _copy(self, place: int, progress: dict[str, Any]) -> Future[None]:
        self._snapshots[place].void()
        self.staging.begin(place)

        def copy() -> None:
            self.staging.copy()
            self._snapshots[place].holds(progress)

        self._copying = self._copier.submit(copy)
        return self._copying

    def fence(self) -> None:
        """Let no update change what a save still reads: in copying, and in writing where the state itself is what is written."""
        self.staging.fence()
        if self.staging.is_state and self._writing:
            self._wait(self._writing)

    def _under_way(self, patience: float) -> tuple[bool, bool]:
        """Whether, after at most `patience` seconds, any rank still copies or makes host memory, and whether any still writes."""
        wait([job for job in (self._copying, self._writing) if job], timeout=patience)
        copying = not all(block.made for block in self.staging.blocks) or bool(self._copying and not self._copying.done())
        writing = bool(self._writing and not self._writing.done())
        found = self.group.sum([float(copying), float(writing)])
        return found[0] > 0, found[1] > 0

    def finish(self) -> None:
        """Wait for the copy and the save under way; on every rank, raise CheckpointError if the save failed."""
        jobs = [job for job in (self._copying, self._writing) if job]
        self._copying = self._writing = None
        for job in jobs:
            self._wait(job)
        try:
            for job in jobs:
                job.result()
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
        for thread in (self._copier, self._saver):
            thread.shutdown(wait=False, cancel_futures=True)
        self.writer.close()

    def place(self, step: int) -> Path:
        return step_folder(self.root, step)

    def load(self, found: FoundCheckpoint) -> None:
        """Read a checkpoint, from memory or the disk, into the parameters and the optimiser. Collective."""
        if found.folder is None:
            self.staging.place = next(i for i, snapshot in enumerate(self._snapshots) if snapshot.found() == found.progress)
        self.void_snapshots()  # another may be of a later step, which this run has not made
        if found.folder:
            read(found.folder, [(part, self.staging.view(part)) for part in self.staging.parts])
            self._saved_step = found.progress["step"]
        self.staging.put_back()
        self._snapshots[self.staging.place].holds(found.progress)

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
        """The newest snapshot that a block of each rank holds."""
        progress = newest_common([snapshot.found() for snapshot in self._snapshots], self.group)
        return FoundCheckpoint(None, progress) if progress else None

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

    def _write(self, folder: Path, progress: dict[str, Any], block: int) -> None:
        # The writer of another rank makes the folder too: it must not do so while it is being cleared.
        self._agree(folder, self._clear(folder) if self.group.is_main else [])
        fault, files = None, {}
        try:
            files = self.writer.write(folder, self.staging.files(), block)
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
