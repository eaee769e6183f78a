"""When a checkpoint or a snapshot is due by the clock, beside the steps at which one is due anyway."""

from __future__ import annotations

import time


class SaveClock:
    """`save_minutes`, `snapshot_seconds`: intervals; 0: never. The main process's clock decides for all ranks."""

    def __init__(self, save_minutes: float, snapshot_seconds: float) -> None:
        self.save_seconds, self.snapshot_seconds = 60 * save_minutes, snapshot_seconds
        self._saved = self._copied = time.monotonic()

    def save_due(self) -> bool:
        return 0 < self.save_seconds <= time.monotonic() - self._saved

    def snapshot_due(self) -> bool:
        return 0 < self.snapshot_seconds <= time.monotonic() - self._copied

    def saved(self) -> None:
        """A checkpoint has begun, which is a snapshot too."""
        self._saved = self._copied = time.monotonic()

    def copied(self) -> None:
        """A snapshot has begun."""
        self._copied = time.monotonic()
