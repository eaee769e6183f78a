"""The columns of JSON files: declared types where the columns are known, inferred ones elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import one_value
from talaria.common.threads import ordered
from talaria.data.conversation.row_shape import RowShape
from talaria.data.readers import column_types
from talaria.data.readers.json_parse import REFUSED, read_block, rows_of
from talaria.data.readers.json_split import JsonLayout, read_blocks, read_chunks
from talaria.data.source_files import SourceFile

_TURN = {"from": pa.string(), "value": pa.string()}
_TURNS = pa.list_(pa.struct(list(_TURN.items())))
_WEIGHTED_TURNS = pa.list_(pa.struct([*_TURN.items(), ("weight", pa.float64())]))
_STRINGS = ["topic", "model_name", "model", "category", "language", "id", "title", "idx", "avatarUrl", "system_prompt", "source"]
# The hub's types of OpenHermes-2.5. Declared, since its rows are sparse: a reader that infers from the first rows
# takes a column that comes later, or a turn's weight that comes and goes, for something else.
DECLARED: dict[str, pa.DataType] = {
    "conversations": _WEIGHTED_TURNS,
    "custom_instruction": pa.bool_(),
    "skip_prompt_formatting": pa.bool_(),
    "views": pa.int64(),
    "hash": pa.list_(pa.int64()),
    **dict.fromkeys(_STRINGS, pa.string()),
}


def schema_to_read(files: Sequence[SourceFile], *, to_the_end: bool) -> pa.Schema | None:
    """Return the schema by which the files may be read quickly, None where there is none.

    A file that is read `to_the_end` need not be looked through for names that are not declared: Arrow's reader stops at them.
    """
    return declared_schema(files) if to_the_end else quick_schema(files)


def quick_schema(files: Iterable[SourceFile]) -> pa.Schema | None:
    """Return the columns in order of appearance with their declared types, or None if a file needs the exact way.

    Quick means pretty-printed arrays whose columns are all declared: their names stand at one indentation.
    """
    found = _Names()
    for file in files:
        with file.open() as stream:
            layout = JsonLayout.of(stream, file.name)
            if layout.key is None:
                return None
            for block in read_blocks(stream, layout):
                found.add(layout.key, block)
                if not found.are_declared:
                    return None
    return found.schema()


_LONGEST = max(map(len, DECLARED)) + 2
_PLACES, _LOOK = 16, 256 << 10
"""In how many places of a file names are looked for, and in how many bytes of each: real data sets are sorted by source, and each
source has columns of its own."""


def declared_schema(files: Iterable[SourceFile]) -> pa.Schema | None:
    """Return what `quick_schema` does in a fifth of its time; but a name that is not declared may be overlooked."""
    found = _Names()
    for file in files:
        with file.open() as stream:
            layout = JsonLayout.of(stream, file.name)
            if layout.key is None or not found.add(layout.key, layout.head).are_declared:
                return None
            if not file.packing and not _places(stream, layout, file.path.stat().st_size).are_declared:
                return None
            found.search(stream, layout)
    return found.schema()


def _places(stream: BinaryIO, layout: JsonLayout, size: int) -> _Names:
    """Look at a few places of a file, and leave the stream where it is."""
    assert layout.key
    found, here = _Names(), stream.tell()
    for place in range(0, size, max(_LOOK, size // _PLACES)):
        stream.seek(place)
        found.add(layout.key, stream.read(_LOOK))
    stream.seek(here)
    return found


@dataclass
class _Names:
    """The columns seen so far, in order, and whether turns have a weight."""

    names: dict[str, None] = field(default_factory=dict)
    weighted: bool = False

    def add(self, key: re.Pattern[bytes], block: bytes) -> Self:
        self.names.update(dict.fromkeys(name.decode(errors="replace") for name in dict.fromkeys(key.findall(block))))
        self.weighted = self.weighted or b'"weight":' in block
        return self

    def search(self, stream: BinaryIO, layout: JsonLayout) -> None:
        """Add the declared names that the rest of the stream has, until none is missing."""
        overlap = len(layout.before_name) + _LONGEST  # what may be cut at the end of a block
        block = np.zeros(overlap + layout.size, np.uint8).data
        block[:overlap] = layout.head[-overlap:].rjust(overlap)
        while not self.are_all and (got := stream.readinto(block[overlap:])):  # type: ignore[attr-defined]
            self._search(block[: overlap + got], layout.before_name.decode())
            block[:overlap] = bytes(block[got : got + overlap])

    def _search(self, block: memoryview, before: str) -> None:
        text = one_value(block, pa.large_binary())
        # each pattern begins with a literal, which the search goes by at several bytes a cycle
        self.weighted = self.weighted or pc.find_substring_regex(text, '"weight":')[0].as_py() >= 0
        while missing := "|".join(DECLARED.keys() - self.names.keys()):
            at = pc.find_substring_regex(text, f'{before}(?:{missing})":')[0].as_py()
            if at < 0:
                return
            name = bytes(block[at + len(before) :][:_LONGEST])
            self.names[name[: name.index(b'"')].decode()] = None

    @property
    def are_all(self) -> bool:
        return self.weighted and self.names.keys() >= DECLARED.keys()

    @property
    def are_declared(self) -> bool:
        return self.names.keys() <= DECLARED.keys()

    def schema(self) -> pa.Schema:
        types = {name: DECLARED[name] for name in self.names}
        if "conversations" in types and not self.weighted:
            types["conversations"] = _TURNS
        return pa.schema(list(types.items()))


_BEYOND_INT64 = 2.0**63
"""Perhaps a whole number of more than 64 bits, which Arrow's reader takes for a float: two ids become one."""


def infer_chunk(chunk: bytes, shape: RowShape | None) -> dict[str, pa.DataType]:
    """The columns of a chunk: as Arrow's reader sees them, or row by row where it takes no account of a value.

    Row by row, rows that `shape` makes no conversation of do not count: they are not written either.
    """
    try:
        table = read_block(chunk, None)
    except REFUSED:
        return _infer_rows(chunk, shape)
    schema = table.schema
    long_number = any(_has_huge_float(part) for column in table.columns for part in column.chunks)
    odd_turns = shape and not all(_is_turns(column.type) for column in schema if column.name in shape.lists)
    if long_number or odd_turns:
        return _infer_rows(chunk, shape)
    return {column.name: _plain(column.type) for column in schema}


def _infer_rows(chunk: bytes, shape: RowShape | None) -> dict[str, pa.DataType]:
    rows = (row for row in rows_of(chunk).values if isinstance(row, dict))
    return column_types.of_rows(row for row in rows if shape is None or shape.takes(row))


def _is_turns(kind: pa.DataType) -> bool:
    """Return whether the type is a list of turns whose role and text are strings."""
    if pa.types.is_null(kind):
        return True
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    texts = {"role", "content", "from", "value"}
    return all(pa.types.is_string(field.type) for field in kind.value_type if field.name in texts)


def infer_files(files: Sequence[SourceFile], threads: int, shape: RowShape | None) -> dict[str, pa.DataType]:
    """Return the columns of all rows of all files in order of appearance, reading them once; JSON where types do not agree.

    Where `shape` makes a conversation of no row, the columns are those of all rows, so that a sentence can say what is wrong.
    """
    return settled(found_columns(files, threads, shape) or found_columns(files, threads, None))


def found_columns(files: Sequence[SourceFile], threads: int, shape: RowShape | None) -> dict[str, pa.DataType]:
    """Return the columns as they are found; those of several parts are joined before they are settled."""
    columns: dict[str, pa.DataType] = {}
    for file in files:
        with file.open() as stream:
            chunks = read_chunks(stream, JsonLayout.of(stream, file.name, ends_inside=file.ends_inside))
            for found in ordered(partial(infer_chunk, shape=shape), chunks, threads):
                column_types.join_columns(columns, found.items())
    return columns


def settled(columns: Mapping[str, pa.DataType]) -> dict[str, pa.DataType]:
    """Return the columns as they are written: with declared types where those fit."""
    return {
        name: column_types.storable(kind if kind == column_types.JSON else _settle(kind, DECLARED.get(name)))
        for name, kind in columns.items()
    }


def _has_huge_float(values: pa.Array) -> bool:
    if pa.types.is_list(values.type):
        return _has_huge_float(values.flatten())
    if pa.types.is_struct(values.type):
        return any(_has_huge_float(pc.struct_field(values, number)) for number in range(values.type.num_fields))
    if not pa.types.is_floating(values.type):
        return False
    largest = pc.max(pc.abs(values)).as_py()
    return largest is not None and largest >= _BEYOND_INT64


def _settle(kind: pa.DataType, declared: pa.DataType | None) -> pa.DataType:
    """The declared type where the values found fit it: where there are none, or whole numbers for a float."""
    if declared is None:
        return kind
    if pa.types.is_null(kind) or (pa.types.is_integer(kind) and pa.types.is_floating(declared)):
        return declared
    if pa.types.is_list(kind) and pa.types.is_list(declared):
        return pa.list_(_settle(kind.value_type, declared.value_type))
    if pa.types.is_struct(kind) and pa.types.is_struct(declared):
        types = {inner.name: inner.type for inner in declared}
        return pa.struct([(inner.name, _settle(inner.type, types.get(inner.name))) for inner in kind])
    return kind


def _plain(kind: pa.DataType) -> pa.DataType:
    """Text stays text: the reader takes a column of ISO dates for timestamps."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(inner.name, _plain(inner.type)) for inner in kind])
    return kind
