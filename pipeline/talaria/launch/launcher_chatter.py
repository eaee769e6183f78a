"""What accelerate and torchelastic print when a rank has ended: kept in the log, kept from whoever reads along.

A rank says in one sentence why it ends. The launcher then adds a traceback of its own and a table of exit codes, thirty lines
in which the sentence is lost.
"""

from __future__ import annotations

import re

_LAUNCHER = ("accelerate/commands/launch.py", "torch/distributed/run.py", "torch/distributed/launcher")
_LOGGED = re.compile(r"^(?:\[\w+\]:)?[EW]\d{4} .*torch/distributed/(?:elastic|run)")
_TRACEBACK = "Traceback (most recent call last):"
_RULE = re.compile(r"^={20,}$")


class LauncherChatter:
    """Filter of a log's lines: `lines(line)` gives those to show now, `rest()` what is still held back at the end."""

    def __init__(self) -> None:
        self._held: list[str] = []
        """A traceback, until its last line tells whose it is."""
        self._report = 0
        """Rules of torchelastic's report that are still to come."""

    def lines(self, line: str) -> list[str]:
        if self._report:
            self._report -= bool(_RULE.match(line))
            return []
        if self._held:
            self._held.append(line)
            return [] if line.startswith((" ", "\t")) or not line.strip() else self._ended()
        if line.endswith(_TRACEBACK):
            self._held = [line]
            return []
        return [] if _LOGGED.match(line) else [line]

    def rest(self) -> list[str]:
        return self._ended() if self._held else []

    def _ended(self) -> list[str]:
        held, self._held = self._held, []
        if not any(mark in line for line in held for mark in _LAUNCHER):
            return held
        self._report = 2 if "ChildFailedError" in held[-1] else 0
        return []
