"""From conversations to messages, on whole Arrow columns: polars maps the roles, the texts are not copied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import to_arrow
from talaria.common.errors import DataError
from talaria.data import row_format as shape
from talaria.data.row_chunk import Chunk
from talaria.data.row_format import MESSAGES, Names

_TEXTS = (pa.string(), pa.large_string(), pa.string_view())


def shape_of(schema: pa.Schema, where: str) -> Names:
    """Which of the two shapes a source has. Raises DataError where it has neither."""
    names = shape.names_for(schema.names)
    if not schema.names:
        raise DataError(f"{where}: holds no row with any column.")
    if names is None:
        found = ", ".join(schema.names)
        raise DataError(f"{where}: no column 'conversations' or 'messages', found {found}; convert.function can make one.")
    kind = schema.field(names.column).type
    if not _holds_turns(kind, names):
        raise DataError(f"{where}: {names.column} should be a list of {{{names.role}, {names.text}}}, found {kind}.")
    return names


def _holds_turns(kind: pa.DataType, names: Names) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    return all(fields.get(name) in _TEXTS for name in (names.role, names.text))


def add_messages(chunk: Chunk, names: Names) -> Chunk:
    """The column `messages` at the end; the rows that have none are set aside.

    `messages` is list<struct<role: string, content: string, ...>>; a source in that shape keeps its further fields.
    """
    chunk = chunk.without(_bad_rows(_column(chunk.table, names.column), names))
    conversations = _column(chunk.table, names.column)
    turns = conversations.flatten()
    fields = {
        "role": _map_roles(pc.struct_field(turns, names.role), names),
        "content": pc.struct_field(turns, names.text).cast(pa.string()),
    }
    table = chunk.table
    if names is MESSAGES:
        table = table.drop_columns([names.column])
        further = [field.name for field in turns.type if field.name not in fields]
        fields |= {name: pc.struct_field(turns, name) for name in further}
    structs = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    messages = pa.ListArray.from_arrays(_offsets(conversations), structs)
    return replace(chunk, table=table.append_column("messages", messages))


def messages_schema(schema: pa.Schema, names: Names) -> pa.Schema:
    """The schema that add_messages gives."""
    fields = {"role": pa.string(), "content": pa.string()}
    if names is MESSAGES:
        at = schema.get_field_index(names.column)
        fields |= {field.name: field.type for field in schema.field(at).type.value_type if field.name not in fields}
        schema = schema.remove(at)
    return schema.append(pa.field("messages", pa.list_(pa.struct(list(fields.items())))))


def drop_empty_answers(chunk: Chunk) -> Chunk:
    """Without the rows that have a blank assistant message."""
    messages = _column(chunk.table, "messages")
    turns = messages.flatten()
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(pc.struct_field(turns, "content"))), 0)
    empty = pc.and_(blank, pc.equal(pc.struct_field(turns, "role"), "assistant"))
    rows = pc.list_parent_indices(messages).filter(empty).unique().to_pylist()
    return chunk.without(dict.fromkeys(rows, (shape.EMPTY_ANSWER, "has a blank answer")))


def drop_duplicates(chunk: Chunk, seen: set[bytes]) -> Chunk:
    """Without the rows whose messages are in `seen`, or earlier in the chunk; `seen` grows by the others."""
    repeated = []
    for row, digest in enumerate(digests(_column(chunk.table, "messages"))):
        if digest in seen:
            repeated.append(row)
        seen.add(digest)
    return chunk.without(dict.fromkeys(repeated, (shape.DUPLICATE, "repeats an earlier row")))


def digests(messages: pa.ListArray) -> list[bytes]:
    """16 bytes a row that two rows share only if their messages are equal (but for a hash collision, 2**-128 a pair)."""
    import xxhash

    turns = messages.flatten()
    role, content, *further = (pc.struct_field(turns, field.name) for field in turns.type)
    # role, length, content, so that no text can look like the end of its message
    length = pc.binary_length(content).cast(pa.string())
    parts = [role, length, content, *(_as_text(values) for values in further), pa.scalar("\n")]
    flat = pc.binary_join_element_wise(*parts)
    rows = pc.binary_join(pa.ListArray.from_arrays(_offsets(messages), flat), "")
    return [xxhash.xxh3_128_digest(row) for row in rows.cast(pa.binary()).to_pylist()]


def _as_text(values: pa.Array) -> pa.Array:
    return pa.array([json.dumps(value, sort_keys=True, default=str) for value in values.to_pylist()], pa.string())


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _bad_rows(conversations: pa.Array, names: Names) -> dict[int, tuple[str, str]]:
    turns = conversations.flatten()
    role, text = pc.struct_field(turns, names.role), pc.struct_field(turns, names.text)
    mapped = _map_roles(role, names)
    if not (mapped.null_count or text.null_count or conversations.null_count):
        return {}
    wrong = pc.or_(mapped.is_null(), text.is_null())
    rows = pc.list_parent_indices(conversations).filter(wrong).to_pylist()
    rows += pc.indices_nonzero(conversations.is_null()).to_pylist()
    return {row: _describe(conversations[row].as_py(), names) for row in sorted(set(rows))}


def _describe(turns: Any, names: Names) -> tuple[str, str]:
    problem = shape.problem({names.column: turns})
    assert problem, f"found bad and is not: {turns}"
    return problem


def _map_roles(role: pa.Array, names: Names) -> pa.Array:
    """Roles of our names; null where the source's is unknown or null."""
    import polars as pl

    mapped = pl.Series(role).replace_strict(names.roles, default=None, return_dtype=pl.String)
    return mapped.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.string())


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Where each list begins in the flattened values: from 0 on, which a slice's own offsets are not. No list is null."""
    own = np.zeros(1, np.int32)
    if len(lists):
        own = np.frombuffer(lists.buffers()[1], np.int32)[lists.offset : lists.offset + len(lists) + 1]
    return to_arrow(own - own[0])
