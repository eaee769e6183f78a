"""Cut a JSON file into chunks of whole rows, each chunk a run of objects that only whitespace separates.

A chunk is what Arrow's JSON reader takes in one block. Nothing here builds a Python object per row. A pretty-printed array is
read the quick way as arrays in an object, {"rows": [...]}, as which Arrow's reader takes it without a look at any comma.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import BinaryIO

import numpy as np

from talaria.common.errors import DataError
from talaria.data import json_text

CHUNK = 8 << 20
_BOM = b"\xef\xbb\xbf"
ROWS = "rows"
_OPEN, _CLOSE = b'{"rows":[', b"]}"
_PRETTY = re.compile(rb"\[(\r?\n)([ \t]+)\{\r?\n(\2[ \t]+)\"")


@dataclass(frozen=True)
class JsonLayout:
    """How a file's rows are laid out, from its first bytes."""

    name: str
    size: int
    """Bytes to read at a time, which is about what a chunk has."""
    head: bytes
    is_array: bool
    separator: bytes | None = None
    """What stands between two rows of a pretty-printed array: line break, closing brace, comma, line break."""
    before_name: bytes = b""
    """What stands before a column's name in a pretty-printed array: line break, indentation, quote."""
    ends_inside: bool = False
    """Whether the last byte begins a row that is another stretch's."""

    @classmethod
    def of(cls, stream: BinaryIO, name: str, size: int | None = None, *, ends_inside: bool = False) -> JsonLayout:
        """Read the first bytes. Raises DataError where they begin no array and no object; a file without any has no rows."""
        size = size or CHUNK
        head = stream.read(size).removeprefix(_BOM).lstrip()
        if head and not head.startswith((b"[", b"{")):
            found = head[:20].decode("utf-8", "replace")
            raise DataError(f"{name}: begins with {found!r}; expected a JSON array of rows, or one row (an object) a line.")
        pretty = _PRETTY.match(head)
        if not pretty:
            return cls(name, size, head, head.startswith(b"["), ends_inside=ends_inside)
        newline, indent, key_indent = pretty.groups()
        separator = newline + indent + b"}," + newline
        return cls(name, size, head, True, separator, b"\n" + key_indent + b'"')

    @property
    def key(self) -> re.Pattern[bytes] | None:
        """A column's name in a pretty-printed array."""
        return re.compile(self.before_name + rb'([^"\\]*)":') if self.before_name else None


def read_arrays(stream: BinaryIO, layout: JsonLayout) -> Iterator[memoryview]:
    """Yield chunks {"rows": [...]} of a pretty-printed array; `stream` continues where `JsonLayout.of` stopped.

    It is cut after each closing brace at the indentation of the first row. A cut inside a row, possible only where indentation
    lies, leaves an unbalanced chunk that no parser takes; the caller then turns to `read_chunks`.
    Raises DataError where the file ends inside a row.
    """
    assert layout.separator
    line_break = 2 if layout.separator.endswith(b"\r\n") else 1
    rest, size = b"", 1
    for source in chain([io.BytesIO(layout.head[1:])], repeat(stream)):
        begin = len(_OPEN) + len(rest)
        chunk = np.empty(begin + layout.size, np.uint8).data
        chunk[:begin] = _OPEN + rest
        end = begin + source.readinto(chunk[begin:])  # type: ignore[attr-defined]  # BinaryIO has none, each file has
        if end == begin:
            break
        size += end - begin
        cut = _last(chunk[begin:end], layout.separator)
        rest = bytes(chunk[begin + cut : end] if cut else chunk[len(_OPEN) : end])
        if cut:
            comma = begin + cut - line_break - 1
            chunk[comma : comma + 2] = _CLOSE  # over the comma and the line break
            yield chunk[: comma + 2]
    tail = rest.rstrip()
    if not tail.endswith(b"]"):
        raise _truncated(layout.name, size)
    yield memoryview(_OPEN + tail + b"}")


def _last(block: memoryview, separator: bytes) -> int:
    """Return where the last separator in the block ends, 0 where there is none."""
    near = max(0, len(block) - (64 << 10))
    found = bytes(block[near:]).rfind(separator)
    if found < 0 and near:
        near, found = 0, bytes(block).rfind(separator)
    return near + found + len(separator) if found >= 0 else 0


def read_chunks(stream: BinaryIO, layout: JsonLayout) -> Iterator[bytes]:
    """Yield chunks of whole rows of a JSON array or of JSON Lines; `stream` continues where `JsonLayout.of` stopped.

    Strings and brackets are followed. Raises DataError where the file ends inside a row.
    """
    return map(without_deep_rows, _array(stream, layout) if layout.is_array else _lines(stream, layout))


def without_deep_rows(chunk: bytes) -> bytes:
    """The chunk with a text, TOO_DEEP, for each row that is nested deeper than MAX_DEPTH; readers recurse, and would crash.

    (`read_arrays` needs no such care: its chunks are read with declared types, none of them deep.)
    """
    if _deepest(chunk) <= json_text.MAX_DEPTH:
        return chunk
    pieces, copied, begun, deepest = [], 0, 0, 0
    for position, is_open, depth in _Brackets().every(chunk):
        deepest = max(deepest, depth + 1) if depth or not is_open else 1
        if is_open and not depth:
            begun = position
        elif not is_open and not depth and deepest > json_text.MAX_DEPTH:
            pieces += [chunk[copied:begun], json.dumps(json_text.TOO_DEEP).encode()]
            copied = position + 1
    return b"".join([*pieces, chunk[copied:]])


def _deepest(chunk: bytes) -> int:
    """Return the deepest nesting in a chunk of rows, from its brackets and quotes alone."""
    bare = chunk.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_STRUCTURE)
    data = np.frombuffer(bare, np.uint8)
    step = _STEP[data]
    step[np.cumsum(data == ord('"')) & 1 == 1] = 0
    return int(np.cumsum(step, dtype=np.int64).max(initial=0))


_NO_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"'))
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def read_blocks(stream: BinaryIO, layout: JsonLayout) -> Iterator[bytes]:
    """Yield the file in blocks that may cut rows, and between two blocks the line that was cut."""
    line, block = b"", layout.head
    while block:
        yield line + block[: block.find(b"\n") + 1]
        yield block
        line = block[block.rfind(b"\n") :]
        block = stream.read(layout.size)


def _lines(stream: BinaryIO, layout: JsonLayout) -> Iterator[bytes]:
    """A line that begins with a brace begins a row; so objects printed over several lines pass too."""
    rest, block = b"", layout.head
    while block:
        rest += block
        cut = rest.rfind(b"\n{") + 1
        if cut:
            yield rest[:cut]
            rest = rest[cut:]
        block = stream.read(layout.size)
    if rest.strip() and not layout.ends_inside:
        yield rest + b"\n"


def _array(stream: BinaryIO, layout: JsonLayout) -> Iterator[bytes]:
    """Any JSON array, by strings and brackets. Rows that are no objects are passed on too: the parser tells them."""
    scan, block = _Brackets(), layout.head
    rest, base = b"", 0  # `rest` begins at byte `base` of the array
    begun = closed = -1  # in `rest`: where the row that is open begins; where the last row, or the array's bracket, ends
    rows = 0
    while block:
        start = len(rest)
        rest += block
        found: list[bytes] = []
        for position, is_open, depth in scan(block):
            at = start + position
            if depth == 1 and is_open:
                found += _scalars(rest[closed:at], rows > 0, True, layout.name, base + at)
                begun = at
            elif depth == 1:
                found.append(rest[begun : at + 1])
                begun, closed, rows = -1, at + 1, rows + 1
            elif is_open:
                closed = at + 1
            else:
                found += _scalars(rest[closed:at], rows > 0, False, layout.name, base + at)
                if (rest[at + 1 :] + stream.read(layout.size)).strip():
                    raise DataError(f"{layout.name}: text follows the end of the array at byte {base + at + 1}.")
                if found:
                    yield b"\n".join(found) + b"\n"
                return
        if found:
            yield b"\n".join(found) + b"\n"
        keep = begun if begun >= 0 else closed
        rest, base = rest[keep:], base + keep
        begun, closed = (0, 0) if begun >= 0 else (-1, 0)
        block = stream.read(layout.size)
    raise _truncated(layout.name, base + len(rest))


def _scalars(gap: bytes, after_row: bool, before_row: bool, name: str, at: int) -> list[bytes]:
    """What stands between two rows besides commas: rows that are null, a number or text."""
    pieces = [piece.strip() for piece in gap.split(b",")]
    if pieces == [b""] and not (after_row and before_row):
        return []
    if after_row and not pieces[0]:
        pieces = pieces[1:]
    if before_row and pieces and not pieces[-1]:
        pieces = pieces[:-1]
    elif before_row:
        pieces = [b""]
    if not all(pieces):
        raise DataError(f"{name}: not valid JSON: a comma too many or too few before byte {at} of the array.")
    return pieces


class _Brackets:
    """Find the brackets of depth 0 and 1 outside strings, over successive blocks.

    In `[{"a": "x]"}, {"b": [1]}]` they are 0 and 1 (open), 11 (closes a row), 14 (open), 23 (closes a row) and 24 (closes the
    array). The bracket inside the string and those of the inner list are left out. A quote that an odd number of backslashes
    precedes does not end a string, also where a block ends between them.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self.escape = False  # the last byte was a backslash that escapes the next

    def __call__(self, block: bytes) -> Iterator[tuple[int, bool, int]]:
        """(position, opens, depth outside the bracket) of each with depth 0 or 1, in order."""
        places, opens, outside = self._follow(block)
        near = np.flatnonzero(outside <= 1)
        return zip(places[near].tolist(), opens[near].tolist(), outside[near].tolist(), strict=True)

    def every(self, block: bytes) -> Iterator[tuple[int, bool, int]]:
        """The same of every bracket."""
        places, opens, outside = self._follow(block)
        return zip(places.tolist(), opens.tolist(), outside.tolist(), strict=True)

    def _follow(self, block: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        data = np.frombuffer(block, np.uint8)
        quotes = self._quotes(data)
        places = np.flatnonzero(_IS_BRACKET[data])
        parity = np.searchsorted(quotes, places) + self.in_string
        places = places[parity & 1 == 0]
        opens = _IS_OPEN[data[places]]
        after = self.depth + np.cumsum(np.where(opens, 1, -1))
        outside = after - opens
        self.in_string ^= bool(len(quotes) & 1)
        if len(after):
            self.depth = int(after[-1])
        return places, opens, outside

    def _quotes(self, data: np.ndarray) -> np.ndarray:
        """Positions of quotes that no backslash escapes: those after an even run of backslashes."""
        slashes = np.flatnonzero(data == ord("\\"))
        escaped = np.zeros(len(data) + 1, bool)
        if self.escape:
            escaped[0] = True
            slashes = slashes[slashes > 0]
        if len(slashes):
            ends = np.flatnonzero(np.diff(slashes, append=-2) != 1)
            lengths = np.diff(ends, prepend=-1)
            escaped[slashes[ends[lengths & 1 == 1]] + 1] = True
        self.escape = bool(escaped[-1])
        quotes = np.flatnonzero(data == ord('"'))
        return quotes[~escaped[quotes]]


_IS_BRACKET = np.zeros(256, bool)
_IS_BRACKET[list(b"[]{}")] = True
_IS_OPEN = np.zeros(256, bool)
_IS_OPEN[list(b"[{")] = True


def _truncated(name: str, size: int) -> DataError:
    return DataError(f"{name}: the array does not end: the file stops at byte {size}, in the middle; fetch it again.")
