"""JSON-lines files that another process writes: read whole, from the end, or sampled; appended to.

A line without its line break is not whole yet and is left out, as is a line that is no JSON object; columns.py follows a long
file as it grows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

_TAIL_BYTES = 16_384
_LINE_BYTES = 4_096


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def end_line(path: Path) -> None:
    """Close a line that a killed process left open, so that the next one stands by itself."""
    with contextlib.suppress(FileNotFoundError), path.open("rb+") as file:
        if _size(file):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def tail(path: Path) -> list[dict[str, Any]]:
    """Return the last rows of a JSON-lines file that fit in a few kilobytes, oldest first."""
    with _opened(path) as file:
        start = max(0, _size(file) - _TAIL_BYTES)
        return [row for _, row in _rows(_read(file, start, _TAIL_BYTES), whole_start=start == 0)]


def last_row(path: Path) -> dict[str, Any]:
    """Return the last row of a JSON-lines file; empty where it has none."""
    return next(reversed(tail(path)), {})


def sample(path: Path, count: int) -> list[dict[str, Any]]:
    """Return at most `count` rows evenly spread over a JSON-lines file, both ends among them, without reading it all."""
    with _opened(path) as file:
        size = _size(file)
        if size <= count * _LINE_BYTES:
            rows = [row for _, row in _rows(_read(file, 0, size), whole_start=True)]
            return [rows[part * (len(rows) - 1) // (count - 1)] for part in range(count)] if len(rows) > count else rows
        starts = [part * size // (count - 1) for part in range(count - 1)]
        reads = [_rows(_read(file, start, _LINE_BYTES), whole_start=start == 0) for start in starts]
        return [found[1] for rows in reads if (found := next(rows, None))] + tail(path)[-1:]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return every whole row of a short JSON-lines file."""
    return [row for _, row in whole_lines(path)]


def whole_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield every whole line, its line break included, and the object that it holds."""
    with _opened(path) as file:
        yield from _rows(file.read(), whole_start=True)


def _opened(path: Path) -> BinaryIO:
    """Open the file, or an empty one where there is none yet."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return io.BytesIO()


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _rows(data: bytes, *, whole_start: bool) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the objects on the whole lines of a piece of a file; broken lines are passed over."""
    lines = data.split(b"\n")[:-1]  # what follows the last line break is not whole yet
    for line in lines if whole_start else lines[1:]:
        with contextlib.suppress(ValueError):
            row = from_json(line)
            if isinstance(row, dict):
                yield line + b"\n", row
