"""Ranks in waiting: a second launch beside the first, whose ranks have imported all that they need and go no further.

Of the half minute from the death of a rank to the next step, two thirds went to the launcher's and the ranks' imports
(benchmarks/LOG.md). Ranks that wait hold no GPU and about a gigabyte of host memory each. They are started once a training has
gone on for a while, and take over when their go file appears. While the former ranks die, which takes seconds, they page-lock
the memory that these leave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from talaria.process import supervisor
from talaria.process.supervisor import Started
from talaria.runs.folder import DYING, GO

_AFTER = 30.0
"""Seconds that a training goes on before ranks in waiting are started: imports beside its first steps would slow them."""


class Standby:
    """`start`: starts a launch with this added to its environment; `folder`: where go files are, None for no ranks in waiting."""

    def __init__(self, start: Callable[[Mapping[str, str]], Started], folder: Path | None) -> None:
        self._start, self._folder = start, folder
        self._waiting: Started | None = None
        self._number = 0
        self._since: float | None = None

    def look(self, training: Callable[[], bool]) -> None:
        """Start ranks in waiting, if there are none, once `training` has been true for a while. Called several times a second."""
        if self._folder is None or self._waiting:
            return
        if self._since is None:
            self._since = time.monotonic() if training() else None
        elif time.monotonic() - self._since > _AFTER:
            self._number += 1
            for signal in (self._go, self._go.with_suffix(DYING)):
                signal.unlink(missing_ok=True)
            self._waiting = self._start({GO: str(self._go)})

    def dying(self) -> None:
        """Tell the ranks in waiting that those whose place they are to take die: what these leave can be made ready."""
        if self._waiting:
            self._go.with_suffix(DYING).touch()

    def take(self) -> Started | None:
        """Let the ranks in waiting go on, as those of a launch that the caller has to follow; None where there are none."""
        taken, self._waiting, self._since = self._waiting, None, None
        if taken is None or taken.process.poll() is not None:
            return None
        self._go.touch()
        return taken

    def close(self) -> None:
        if self._waiting:
            supervisor.end(self._waiting)
            self._waiting = None

    @property
    def _go(self) -> Path:
        assert self._folder
        return self._folder / f"go-{self._number}"
