"""Starting ranks again that died: when it is worth it, and how soon the survivors are ended."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.runs.folder import METRICS
from talaria.runs.jsonl import tail

if TYPE_CHECKING:
    from talaria.config.train_settings import Train

_LAST_WORDS = 1.0
"""Seconds that survivors get to say themselves what has happened, before they are killed."""
_KILLED = 0.1
"""The same where a signal killed the rank, of which they know nothing."""
_STATUS = 49
"""Where /proc/PID/stat has what a process ended with, counted from its state."""


class Restarts:
    """Counts starts in a row that brought no step that had not been made before."""

    def __init__(self, train: Train, output: Path) -> None:
        self.limit, self.output = train.restarts, output
        # Several machines must begin anew together, which is the orchestrator's to see to.
        self.possible = train.num_machines == 1 and train.restarts > 0
        self.furthest = self._step()
        self.in_a_row = 0

    def allowed(self) -> bool:
        """Whether the ranks that have just died are to be started again; counts them as started."""
        step = self._step()
        self.in_a_row = 1 if step > self.furthest else self.in_a_row + 1
        self.furthest = max(step, self.furthest)
        return self.possible and self.in_a_row <= self.limit

    def new_step(self) -> bool:
        """Whether a step has been made that had not been made before the ranks were started."""
        return self._step() > self.furthest

    def __str__(self) -> str:
        return f"start {self.in_a_row} of {self.limit} without a new step"

    def _step(self) -> int:
        return next((int(row["step"]) for row in reversed(tail(self.output / METRICS))), 0)


class RankDeaths:
    """Ranks leave their pids in `folder` and take them away when they end of their own will.

    A rank that was killed leaves the others waiting inside NCCL, which hears of it minutes later if at all.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._ends: float | None = None
        """When the survivors' time is over."""
        for stale in self._pids():
            stale.unlink(missing_ok=True)

    def survivors_must_end(self) -> bool:
        """Whether a rank has been dead for so long that the others are to be ended; says so once."""
        if self._ends is None:
            given = [seconds for seconds in map(_time_for_survivors, self._pids()) if seconds is not None]
            self._ends = time.monotonic() + min(given) if given else None
        elif time.monotonic() > self._ends:
            self.folder, self._ends = None, None
            return True
        return False

    def _pids(self) -> list[Path]:
        return list(self.folder.glob("rank-*.pid")) if self.folder else []


def _time_for_survivors(note: Path) -> float | None:
    """Seconds that the other ranks get after the death of the rank with this note; None while it lives."""
    try:
        pid = int(note.read_text() or 0)
        os.kill(pid, 0)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return _LAST_WORDS
    except (OSError, ValueError):  # taken away, or not yet written
        return None
    if fields[0] != "Z":
        return None
    return _KILLED if int(fields[_STATUS]) & 0x7F else _LAST_WORDS  # as wait(2) has it
