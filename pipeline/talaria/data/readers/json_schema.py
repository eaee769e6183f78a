"""The columns of JSON files: declared types where the columns are known, inferred ones elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

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


def quick_schema(files: Iterable[SourceFile]) -> pa.Schema | None:
    """Return the columns in order of appearance with their declared types, or None if a file needs the exact way.

    Quick means pretty-printed arrays whose columns are all declared: their names stand at one indentation.
    """
    names: dict[str, None] = {}
    weighted = False
    for file in files:
        with file.open() as stream:
            layout = JsonLayout.of(stream, file.name)
            if layout.key is None:
                return None
            for block in read_blocks(stream, layout):
                names.update(dict.fromkeys(key.decode(errors="replace") for key in dict.fromkeys(layout.key.findall(block))))
                if not names.keys() <= DECLARED.keys():
                    return None
                weighted = weighted or b'"weight":' in block
    types = {name: DECLARED[name] for name in names}
    if "conversations" in types and not weighted:
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
    """Return the columns of all rows of all files in order of appearance, reading them once; JSON where types do not agree."""
    return settled(found_columns(files, threads, shape))


def found_columns(files: Sequence[SourceFile], threads: int, shape: RowShape | None) -> dict[str, pa.DataType]:
    """Return the columns as they are found; those of several parts are joined before they are settled."""
    columns: dict[str, pa.DataType] = {}
    for file in files:
        with file.open() as stream:
            chunks = read_chunks(stream, JsonLayout.of(stream, file.name, ends_inside=file.ends_inside), exact=True)
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
