"""Files shared out between workers: JSON Lines by ranges of bytes that begin with a row, every other file as a whole.

A range is read in the blocks of the whole file, so that its chunks are those of the file read from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, cast

from talaria.data.readers import json_split
from talaria.data.readers.json_split import JsonLayout
from talaria.data.source_files import SourceFile


@dataclass(frozen=True)
class FileRange(SourceFile):
    """Bytes [start, stop) of a file of JSON Lines; `stop` None: to its end."""

    start: int = 0
    stop: int | None = None

    @property
    def ends_inside(self) -> bool:  # type: ignore[override]
        return self.stop is not None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        with super().open() as raw:
            yield cast("BinaryIO", _Range(raw, self.start, self.stop))


class _Range:
    """Reads to the end of a block of the file at most, and one byte beyond the range: the brace that begins the next row."""

    def __init__(self, raw: BinaryIO, start: int, stop: int | None) -> None:
        self._raw, self._at, self._stop = raw, start, stop
        raw.seek(start)

    def read(self, size: int) -> bytes:
        end = (self._at // size + 1) * size
        if self._stop is not None:
            end = min(end, self._stop + 1)
        data = self._raw.read(max(0, end - self._at))
        self._at += len(data)
        return data


def share_out(files: Sequence[SourceFile], parts: int) -> list[list[SourceFile]]:
    """The files in their order as so many lists of about as many bytes; one may be empty."""
    sizes = [file.path.stat().st_size for file in files]
    total = max(1, sum(sizes))
    shared: list[list[SourceFile]] = [[] for _ in range(parts)]
    before = 0
    for file, size in zip(files, sizes, strict=True):
        first = before * parts // total
        edges = {0: first}  # place in the file -> part that begins there
        if file.kind == "json" and not file.packing and _is_lines(file):
            for part in range(first + 1, parts):
                if (place := _row_before(file, part * total // parts - before, size)) is not None:
                    edges[place] = part
        starts = [*edges, None]
        for (start, part), stop in zip(edges.items(), starts[1:], strict=True):
            whole = start == 0 and stop is None
            piece = file if whole else FileRange(file.path, file.name, file.kind, None, start, stop)
            shared[part].append(piece)
        before += size
    return shared


def _is_lines(file: SourceFile) -> bool:
    with file.open() as stream:
        layout = JsonLayout.of(stream, file.name)
        return bool(layout.head) and not layout.is_array


def _row_before(file: SourceFile, place: int, size: int) -> int | None:
    """Where the last row begins in the block of `place`: there the file is cut anyway. None at either end of the file."""
    block = place // json_split.CHUNK
    if place >= size or block == 0:
        return None
    start = block * json_split.CHUNK - 1  # a line break there, and a brace at the block's beginning, count
    with file.open() as stream:
        stream.seek(start)
        found = stream.read(json_split.CHUNK + 1).rfind(b"\n{")
    return None if found < 0 else start + found + 1
