"""The columns of JSON files: declared types where the columns are known, inferred ones elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from talaria.common.errors import DataError
from talaria.common.threads import ordered
from talaria.data import row_format as shape
from talaria.data.json_parse import REFUSED, mend, read_block, reason_of, refusal, sift
from talaria.data.json_split import Layout, read_blocks, read_chunks
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
    """The columns in order of appearance with their declared types, or None where a file needs care.

    Quick means pretty-printed arrays whose columns are all declared: their names stand at one indentation.
    """
    names: dict[str, None] = {}
    weighted = False
    for file in files:
        with file.open() as stream:
            layout = Layout.of(stream, file.name)
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


@dataclass(frozen=True)
class Inferred:
    schema: pa.Schema
    size: int
    """Rows of the chunk."""
    conflict: str | None = None
    """Why its rows have no schema together."""


def infer_chunk(chunk: bytes, problem: shape.Problem = shape.problem) -> Inferred:
    """The columns of a chunk as the reader sees them, without the rows that could not be converted anyway."""
    try:
        table = read_block(chunk, None)
        return Inferred(table.schema, len(table))
    except REFUSED:
        texts, rows, bad = sift(chunk, problem)
    size = len(rows) + len(bad)
    readable = [text for text in map(mend, texts) if refusal(text, None) is None]
    try:
        return Inferred(read_block("\n".join(readable).encode(), None).schema if readable else pa.schema([]), size)
    except REFUSED as error:
        return Inferred(pa.schema([]), size, reason_of(error))


def infer_files(files: Sequence[SourceFile], threads: int, problem: shape.Problem = shape.problem) -> pa.Schema:
    """The schema of all rows of all files, columns in order of appearance, by reading them all once.

    Raises DataError where a column has values of types that do not go together.
    """
    merged = pa.schema([])
    for file in files:
        with file.open() as stream:
            row = 0
            chunks = read_chunks(stream, Layout.of(stream, file.name), exact=True)
            for found in ordered(partial(infer_chunk, problem=problem), chunks, threads):
                merged = _merge(merged, found, f"{file.name}: rows {row} to {row + found.size - 1}")
                row += found.size
    return pa.schema([(column.name, _settle(column.type, DECLARED.get(column.name))) for column in merged])


def _merge(schema: pa.Schema, found: Inferred, where: str) -> pa.Schema:
    if found.conflict:
        raise DataError(f"{where}: {found.conflict}; a column must have one type.")
    plain = pa.schema([(column.name, _plain(column.type)) for column in found.schema])
    try:
        return pa.unify_schemas([schema, plain], promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise DataError(f"{where}: {reason_of(error)}, in the rows before; a column must have one type.") from None


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
