"""Checkpoints: sharded, written beside the training, whole or recognisably not, and readable by any number of ranks.

    checkpoints/step-00001000/
        rank-00000-000.safetensors ...   what rank 0 wrote, and so on
        complete.json                    written last: progress, identity, size and sha256 of each file

Tensors go through torch.distributed.checkpoint in its safetensors form and all else is JSON, so that reading a checkpoint,
whoever wrote it, never unpickles anything.
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
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from talaria.common.files import disk_is_full, file_digest, write_atomically
from talaria.runs.folder import MARKER, step_folder
from talaria.train.checkpoint.shard_writer import ShardWriter
from talaria.train.checkpoint.staging import Staging
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.telemetry.watchdog import Alive

FORMAT = 1


class CheckpointError(OSError):
    """A checkpoint that could not be written. The ones before it are untouched."""


@dataclass(frozen=True)
class Found:
    folder: Path
    marker: dict[str, Any]

    @property
    def progress(self) -> dict[str, Any]:
        progress: dict[str, Any] = self.marker["progress"]
        return progress


class CheckpointManager:
    """One run's checkpoints. Collective: every rank calls the same methods in the same order."""

    def __init__(self, root: Path, group: ProcessGroup, staging: Staging, *, identity: str, keep: int, alive: Alive) -> None:
        self.root, self.group, self.staging, self.identity, self.keep, self.alive = root, group, staging, identity, keep, alive
        # Saving talks between ranks while training does: it needs a group, and so an order of messages, of its own.
        self._gloo = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._held = -1

    def save(self, progress: dict[str, Any]) -> None:
        """Copy the state to host memory, then write it in the background. Raises CheckpointError for the save before.

        A step that is saved already, or that the run went on from, is left as it is.
        """
        self.finish()
        if progress["step"] == self._held:
            return
        self.staging.fetch()
        self._held = progress["step"]
        self._pending = self._thread.submit(self._write, self.place(progress["step"]), progress)

    def finish(self) -> None:
        """Wait for the save under way; on every rank, raise CheckpointError if it failed."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        written = -1
        while not wait([pending], timeout=1.0).done:
            size = _written_bytes(self.root)
            if size != written:  # slow is not stuck
                written = size
                self.alive()
        try:
            pending.result()
        except CheckpointError:
            self._held = -1
            raise

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def place(self, step: int) -> Path:
        return step_folder(self.root, step)

    def load(self, found: Found) -> None:
        """Read a checkpoint into the parameters and the optimiser. Collective."""
        load(self.staging.tensors, storage_reader=HuggingFaceStorageReader(str(found.folder)), process_group=self._gloo)
        self.staging.push()
        self._held = found.progress["step"]

    def newest(self, warn: Callable[[str], None]) -> Found | None:
        """The newest checkpoint that is whole and ours. Collective; `warn` hears, on rank 0, why others were passed over."""
        for folder in self.group.broadcast(sorted(self.root.glob("step-*"), reverse=True)):
            found, fault = self._inspect(folder)
            faults = [fault for fault in self.group.gather(fault) if fault]
            if not faults and found:
                return found
            if self.group.is_main:
                warn(f"checkpoint {folder.name} is passed over: {faults[0]}")
        return None

    def _inspect(self, folder: Path) -> tuple[Found | None, str | None]:
        """The checkpoint, or what is wrong with it; ranks share the reading of its files."""
        try:
            marker = json.loads((folder / MARKER).read_text())
            if marker["format"] != FORMAT:
                return None, f"its format is {marker['format']}, not {FORMAT}"
            if marker["identity"] != self.identity:
                return None, "it belongs to a run with other data, another base model or other settings"
            if strange := {path.name for path in folder.glob("*.safetensors")} - set(marker["files"]):
                return None, f"{min(strange)} does not belong to it"
            for name, file in sorted(marker["files"].items()):
                if (folder / name).stat().st_size != file["bytes"]:
                    return None, f"{name} is truncated"
            for name, file in itertools.islice(sorted(marker["files"].items()), self.group.rank, None, self.group.size):
                if file_digest(folder / name) != file["sha256"]:
                    return None, f"{name} is damaged"
                self.alive()
        except FileNotFoundError as error:
            missing = Path(error.filename).name
            return None, "its saving was cut off" if missing == MARKER else f"{missing} is missing"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return None, f"{MARKER} is not readable ({error})"
        return Found(folder, marker), None

    def _write(self, folder: Path, progress: dict[str, Any]) -> None:
        # The writer of another rank makes the folder too: it must not do so while it is being cleared.
        box: list[Any] = [self._clear(folder) if self.group.is_main else []]
        dist.broadcast_object_list(box, src=0, group=self._gloo)
        if box[0]:
            raise CheckpointError(f"{folder.name} could not be saved: {box[0][0]}")
        fault, files = None, {}
        try:
            writer = ShardWriter(folder)
            save(self.staging.tensors, storage_writer=writer, process_group=self._gloo)
            files = {path.name: {"bytes": path.stat().st_size, "sha256": file_digest(path)} for path in writer.written}
        except (OSError, SafetensorError, CheckpointException) as error:
            fault = _reason(error)
        parts: list[Any] = [None] * self.group.size
        dist.all_gather_object(parts, (fault, files), group=self._gloo)
        faults = [fault for fault, _ in parts if fault]
        if self.group.is_main and not faults:
            every = {name: file for _, part in parts for name, file in part.items()}
            faults = self._complete(folder, {"format": FORMAT, "identity": self.identity, "progress": progress, "files": every})
        box = [faults]
        dist.broadcast_object_list(box, src=0, group=self._gloo)
        if box[0]:
            if self.group.is_main:
                shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(f"{folder.name} could not be saved: {box[0][0]}")
        if self.group.is_main:
            self._prune()

    def _clear(self, folder: Path) -> list[str]:
        """Make the folder, without what an interrupted save left in it."""
        try:
            shutil.rmtree(folder, ignore_errors=True)
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


def _reason(error: BaseException) -> str:
    """The cause that a user can act on, from under torch's wrapping."""
    if isinstance(error, CheckpointException):
        rank, (inner, _) = min(error.failures.items())
        return f"rank {rank}: {_reason(inner)}"
    if disk_is_full(error):
        return "the disk is full"
    return f"{type(error).__name__}: {error}"
