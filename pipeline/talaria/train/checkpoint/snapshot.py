"""A block of a rank's host memory as a checkpoint that outlives the rank: which step it holds, and whether it is whole.

The note beside the block is removed before the block is written over and made anew once it is whole again, so that a rank killed
in between leaves none. A snapshot serves the same number of ranks laid out in the same way; others resume from the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talaria.train.checkpoint.host_block import HostBlock
from talaria.train.checkpoint.staging import Part
from talaria.train.distributed.process_group import ProcessGroup

Progress = dict[str, Any]


class Snapshot:
    def __init__(self, block: HostBlock, parts: Sequence[Part], identity: str, world_size: int) -> None:
        self._note = block.path.with_name(f"{block.path.name}.json") if block.path else None
        layout = [(part.name, str(part.dtype), part.span.start, part.span.stop) for part in parts]
        self._about = {
            "identity": identity,
            "world_size": world_size,
            "layout": hashlib.sha256(json.dumps(layout).encode()).hexdigest(),
        }
        if self._note and not block.kept:
            self._note.unlink(missing_ok=True)

    @property
    def kept(self) -> bool:
        """Whether the block lies where a restart finds it."""
        return self._note is not None

    def void(self) -> None:
        """The block is about to be written over."""
        if self._note:
            self._note.unlink(missing_ok=True)

    def holds(self, progress: Progress) -> None:
        """The block holds this step, whole."""
        if self._note:
            partial = self._note.with_suffix(".partial")
            partial.write_text(json.dumps({**self._about, "progress": progress}))
            partial.replace(self._note)

    def found(self) -> Progress | None:
        """The progress that an earlier process of this rank left whole in the block, if it is of this run and layout."""
        note = _read(self._note) if self._note else {}
        progress: Progress | None = note.pop("progress", None)
        return progress if note == self._about else None


def newest_common(found: Sequence[Progress | None], group: ProcessGroup) -> Progress | None:
    """The newest progress that a snapshot of every rank holds. Collective."""
    first, *others = group.gather([progress for progress in found if progress])
    common = [progress for progress in first if all(progress in other for other in others)]
    return max(common, key=lambda progress: progress["step"]) if common else None


def expected(folder: Path | None, identity: str, group: ProcessGroup) -> bool:
    """Whether, by the notes alone, every rank will find a snapshot of the same step, once its blocks are there. Collective."""
    notes = [_read(note) for note in _notes(folder, group.rank)] if folder else []
    ours = [note for note in notes if (note.get("identity"), note.get("world_size")) == (identity, group.size)]
    return newest_common([note.get("progress") for note in ours], group) is not None


def newest(folder: Path, rank: int) -> Path | None:
    """The block that holds a rank's newest snapshot, of whatever layout."""
    notes = [(note["progress"]["step"], path) for path in _notes(folder, rank) if (note := _read(path))]
    return max(notes)[1].with_suffix("") if notes else None


def forget(folder: Path, rank: int) -> None:
    """Remove a rank's notes, of whatever layout."""
    for note in _notes(folder, rank):
        note.unlink(missing_ok=True)


def _notes(folder: Path, rank: int) -> list[Path]:
    return [*folder.glob(f"rank-{rank}.json"), *folder.glob(f"rank-{rank}-*.json")]


def _read(note: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(note.read_text())
        return found
    except (FileNotFoundError, ValueError):
        return {}
