"""Show a run's progress: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, Protocol, TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line to the log at once."""
    print(text, file=stream or sys.stdout, flush=True)


class Progress(Protocol):
    def step(self, record: dict[str, Any], total: int) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    def step(self, record: dict[str, Any], total: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


class Lines:
    """Print a plain line every few seconds and at the last step."""

    def __init__(self, every: float = 5.0) -> None:
        self.every, self._last, self._start, self._first = every, 0.0, time.monotonic(), 0

    def step(self, record: dict[str, Any], total: int) -> None:
        now = time.monotonic()
        self._first = self._first or record["step"]
        if now - self._last < self.every and record["step"] != total:
            return
        self._last = now
        say(describe(record, total, remaining(record["step"], self._first, total, now - self._start)))

    def note(self, text: str) -> None:
        say(text)

    def close(self) -> None:
        pass


class Bar:
    """A rich progress bar, for a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def step(self, record: dict[str, Any], total: int) -> None:
        shown = f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  {record['tokens_per_second']:,.0f} tok/s"
        self._bar.update(self._task, completed=record["step"], total=total, description=shown)

    def note(self, text: str) -> None:
        self._bar.console.print(text)

    def close(self) -> None:
        self._bar.stop()


def show_progress(is_main: bool) -> Progress:
    if not is_main:
        return Silent()
    return Bar() if sys.stderr.isatty() and sys.stdout.isatty() else Lines()


def remaining(step: int, first: int, total: int, elapsed: float) -> float:
    """Return the seconds left at the pace so far."""
    return elapsed / max(1, step - first + 1) * (total - step)


def describe(record: dict[str, Any], total: int, seconds_left: float) -> str:
    minutes, seconds = divmod(round(seconds_left), 60)
    hours, minutes = divmod(minutes, 60)
    mfu = f"  mfu {record['mfu']:.1%}" if record["mfu"] else ""
    return (
        f"step {record['step']}/{total}  epoch {record['epoch']:.2f}  loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
        f"{record['tokens_per_second']:,.0f} tok/s{mfu}  eta {hours}:{minutes:02d}:{seconds:02d}"
    )
