"""A JSON-lines file as columns of numbers, read while another process writes it.

Only what was appended since the last look is parsed. A last line without its line break is left for the next look; a
line that is no JSON object with a whole `step` is counted in `skipped`. A step that comes again (a resumed training
repeats the steps after its checkpoint) replaces its first telling and all that followed it. A file that was cut short
or replaced is read again from its beginning.
"""

from __future__ import annotations

import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json  # twice as fast as json.loads, and a dependency already

_CHUNK = 1 << 20
_MISSING = math.nan
_EXACT = 1 << 53  # whole numbers that a float holds exactly


class Journal:
    """Columns of a growing JSON-lines file; all columns have the length of `steps`. Missing values are NaN."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.rewritten = getattr(self, "rewritten", 0) + 1
        """Changes when rows that were read before are no longer what they were; else rows are only added."""
        self.skipped = 0
        self._holding: set[str] = {"step"}
        self._columns: dict[str, array[float]] = {"step": array("d")}
        self._inode = 0
        self._offset = 0
        self._last_line = b""

    @property
    def steps(self) -> array[float]:
        return self._columns["step"]

    def column(self, name: str) -> array[float]:
        """Return the values of a field, NaN where a row lacks it."""
        return self._columns.get(name) or array("d", [_MISSING]) * len(self.steps)

    def names(self) -> list[str]:
        """Return the fields that hold at least one number."""
        return [name for name in self._columns if name in self._holding]

    def last(self, name: str) -> float | None:
        """Return the latest finite value of a field."""
        return next((value for value in reversed(self.column(name)) if math.isfinite(value)), None)

    def refresh(self) -> None:
        """Read what was appended; a file that is not there is an empty one."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            self._forget()
            return
        with file:
            if not self._continues(file):
                self._forget()
                self._inode = _inode(file)
            file.seek(self._offset)
            pending = b""
            while chunk := file.read(_CHUNK):
                whole, newline, pending = (pending + chunk).rpartition(b"\n")
                if newline:
                    self._take(whole)
                    self._offset += len(whole) + 1
                    self._last_line = whole[whole.rfind(b"\n") + 1 :] + newline

    def _continues(self, file: BinaryIO) -> bool:
        """Return whether the file still begins with what was read: same file, and the last line read is at its place."""
        if _inode(file) != self._inode:
            return False
        file.seek(self._offset - len(self._last_line))
        return file.read(len(self._last_line)) == self._last_line

    def _take(self, lines: bytes) -> None:
        rows = _parse(lines)
        good = [row for row in rows if isinstance(row, dict) and _is_step(row.get("step"))]
        self.skipped += len(rows) - len(good)
        if not good:
            return
        previous = self.steps[-1] if self.steps else -math.inf
        steps = [row["step"] for row in good]
        if previous < steps[0] and all(a < b for a, b in pairwise(steps)):
            self._append(good)
            return
        for row in good:
            self._rewind(row["step"])
            self._append([row])

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        have = len(self.steps)
        for name in set(self._columns).union(*rows):
            if name not in self._columns:
                self._columns[name] = array("d", [_MISSING]) * have
            numbers = _numbers([row.get(name) for row in rows])
            if name not in self._holding and not all(map(math.isnan, numbers)):
                self._holding.add(name)
            self._columns[name].extend(numbers)

    def _rewind(self, step: int) -> None:
        """Forget `step` and what came after it."""
        keep = bisect_left(self.steps, step)
        if keep == len(self.steps):
            return
        self.rewritten += 1
        for values in self._columns.values():
            del values[keep:]
        self._holding = {name for name, values in self._columns.items() if not all(map(math.isnan, values))}


def thin(values: array[float], buckets: int) -> list[int]:
    """Return the indices of the points that draw a curve in `buckets` columns: the lowest and highest finite value of each
    stretch, and both ends, so that no spike is lost (the min-max half of M4, Jugel et al. 2014)."""
    finite: Sequence[int] = range(len(values))
    if not all(map(math.isfinite, values)):
        finite = [index for index, value in enumerate(values) if math.isfinite(value)]
        values = array("d", [values[index] for index in finite])
    count = len(finite)
    if count <= 2 * buckets:
        return list(finite)
    kept = {0, count - 1}
    for bucket in range(buckets):
        start, stop = bucket * count // buckets, (bucket + 1) * count // buckets
        stretch = values[start:stop]
        kept.add(start + stretch.index(min(stretch)))
        kept.add(start + stretch.index(max(stretch)))
    return [finite[index] for index in sorted(kept)]


def _parse(lines: bytes) -> list[Any]:
    """Parse each line, None for a broken one. If all are whole they are parsed at once, which is a third faster."""
    try:
        together: list[Any] = from_json(b"[" + lines.replace(b"\n", b",") + b"]")
        if len(together) == lines.count(b"\n") + 1:
            return together
    except ValueError:
        pass
    return [_parse_line(line) for line in lines.split(b"\n")]


def _parse_line(line: bytes) -> Any:
    try:
        return from_json(line)
    except ValueError:
        return None


def _numbers(values: list[Any]) -> array[float]:
    try:
        return array("d", values)
    except (TypeError, OverflowError):
        return array("d", [_number(value) for value in values])


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else _MISSING
    except OverflowError:
        return _MISSING


def _is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _EXACT


def _inode(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_ino
