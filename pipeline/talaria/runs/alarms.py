"""Notice, from a training's folder, what a person should hear while it still runs: spikes, a stall, no progress, a full disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from talaria.runs.folder import EVALS, EVENTS, METRICS
from talaria.runs.jsonl import tail
from talaria.runs.summary import finite

QUIET_SECONDS = 600.0
"""An alarm of one kind is raised at most so often."""
_TOLD_EVENTS = ("loss_spike", "warning")


class TrainingAlarms:
    """Looks at one attempt of a training and returns the sentences that are new.

    What ends a training (NaN, a hang, a full disk) is its failure, which is told in another way.

    :param stall_seconds: raise when no step was made for so long.
    :param patience: raise when so many evaluations in a row were no better than the best one before.
    :param free_disk: raise when less than this share of the folder's disk is free.
    """

    def __init__(self, *, stall_seconds: float, patience: int, free_disk: float, now: float) -> None:
        self.stall_seconds = stall_seconds
        self.patience = patience
        self.free_disk = free_disk
        self._step: int | None = None
        self._stepped = now
        self._raised: dict[str, float] = {}
        self._events_until = now

    def look(self, folder: Path, now: float) -> list[str]:
        """Return what is wrong now and has not been said lately. `now`: Unix seconds."""
        found = [*self._events(folder), *self._stall(folder, now), *self._no_progress(folder), *self._disk(folder)]
        due = [(kind, text) for kind, text in found if now - self._raised.get(kind, -QUIET_SECONDS) >= QUIET_SECONDS]
        self._raised |= {kind: now for kind, _ in due}
        return [text for _, text in due]

    def _events(self, folder: Path) -> Iterator[tuple[str, str]]:
        """What the trainer itself found worth a remark since the last look."""
        for event in tail(folder / EVENTS):
            if (when := finite(event.get("time")) or 0.0) > self._events_until:
                self._events_until = when
                if event.get("kind") in _TOLD_EVENTS:
                    yield str(event["kind"]), f"step {event.get('step')}: {event.get('message')}"

    def _stall(self, folder: Path, now: float) -> Iterator[tuple[str, str]]:
        rows = tail(folder / METRICS)
        step = rows[-1].get("step") if rows else None
        if step != self._step:
            self._step, self._stepped = step, now
            self._raised.pop("stall", None)
        silent = now - self._stepped
        if step is not None and silent > self.stall_seconds:
            yield "stall", f"no step has been made for {silent:.0f} s, the last one was {step}"

    def _no_progress(self, folder: Path) -> Iterator[tuple[str, str]]:
        rows = [row for row in tail(folder / EVALS) if finite(row.get("loss")) is not None]
        if len(rows) <= self.patience:
            return
        best, recent = min(row["loss"] for row in rows[: -self.patience]), rows[-self.patience :]
        if all(row["loss"] >= best for row in recent):
            kind = f"no progress since {recent[0].get('step')}"  # the same stretch is told once
            if kind not in self._raised:
                yield kind, f"the last {self.patience} held-out losses are not below {best:.4f}, that of an earlier step"

    def _disk(self, folder: Path) -> Iterator[tuple[str, str]]:
        usage = shutil.disk_usage(folder)
        if usage.free < self.free_disk * usage.total:
            yield "disk", f"{usage.free / 1e9:.1f} GB are free on the disk of {folder}, {usage.free / usage.total:.1%} of it"
