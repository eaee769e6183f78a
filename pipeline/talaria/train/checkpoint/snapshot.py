"""A block of a rank's host memory as a checkpoint that outlives the rank: which step it holds, and whether it is whole.

The note beside the block is removed before the block is written over and made anew once it is whole again, so that a rank killed
in between leaves none. A snapshot serves the same number of ranks laid out in the same way; others resume from the disk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from talaria.train.checkpoint.host_block import HostBlock
from talaria.train.checkpoint.staging import Part


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

    def holds(self, progress: dict[str, Any]) -> None:
        """The block holds this step, whole."""
        if self._note:
            partial = self._note.with_suffix(".partial")
            partial.write_text(json.dumps({**self._about, "progress": progress}))
            partial.replace(self._note)

    def found(self) -> dict[str, Any] | None:
        """The progress that an earlier process of this rank left whole in the block, if it is of this run and layout."""
        try:
            note = json.loads(self._note.read_text()) if self._note else {}
        except (FileNotFoundError, ValueError):
            return None
        progress: dict[str, Any] | None = note.pop("progress", None)
        return progress if note == self._about else None
