"""jsonl."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

_TAIL_BYTES = 16_384


_LINE_BYTES = 4_096


def read_object(path: Path) -> dict[str, Any]:
    """A small JSON file; empty when it is missing, or cut off by a writer that died."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def tail(path: Path) -> list[dict[str, Any]]:
    """The last rows of a JSON-lines file that fit in a few kilobytes, oldest first."""
    with _opened(path) as file:
        start = max(0, _size(file) - _TAIL_BYTES)
        return list(_rows(_read(file, start, _TAIL_BYTES), whole_start=start == 0))


def sample(path: Path, count: int) -> list[dict[str, Any]]:
    """At most `count` rows evenly spread over a JSON-lines file, both ends among them, without reading it all."""
    with _opened(path) as file:
        size = _size(file)
        if size <= count * _LINE_BYTES:
            rows = list(_rows(_read(file, 0, size), whole_start=True))
            return [rows[part * (len(rows) - 1) // (count - 1)] for part in range(count)] if len(rows) > count else rows
        starts = [part * size // (count - 1) for part in range(count - 1)]
        reads = [_rows(_read(file, start, _LINE_BYTES), whole_start=start == 0) for start in starts]
        return [row for rows in reads if (row := next(rows, None))] + tail(path)[-1:]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every whole row of a short JSON-lines file."""
    with _opened(path) as file:
        return list(_rows(file.read(), whole_start=True))


def _opened(path: Path) -> BinaryIO:
    """The file, or an empty one where there is none yet."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        return io.BytesIO()


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(start)
    return file.read(length)


def _rows(data: bytes, *, whole_start: bool) -> Iterator[dict[str, Any]]:
    """The objects on the whole lines of a piece of a file; broken lines are passed over."""
    lines = data.split(b"\n")[:-1]  # what follows the last line break is not whole yet
    for line in lines if whole_start else lines[1:]:
        with contextlib.suppress(ValueError):
            row = from_json(line)
            if isinstance(row, dict):
                yield row
