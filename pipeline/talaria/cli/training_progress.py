"""A training on the command line: a bar on a terminal, the ranks' own plain lines elsewhere."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from talaria.common.printable import printable
from talaria.runs.folder import RunPath
from talaria.runs.summary import losses, summarize

LOOK = 0.5  # seconds between looks at the folder
_STEP = re.compile(r"^step \d+/\d+ ")


class TrainingProgress:
    """`on_line` and `on_look` are what `launch` wants."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not self._terminal)
        self._task = self._bar.add_task("starting", total=None)
        self._next = 0.0

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def on_line(self, line: str) -> None:
        line = printable(line, keep="\t")
        if not self._terminal:
            print(line, file=sys.stderr, flush=True)
        elif not _STEP.match(line):  # the bar says it
            self._bar.console.print(line, markup=False, highlight=False)

    def on_look(self, folder: Path) -> None:
        if not self._terminal or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK
        card = summarize(RunPath("", folder, finished=False), time.time())
        if card["step"]:
            self._bar.update(self._task, completed=card["step"], total=card["total_steps"], description=", ".join(losses(card)))
