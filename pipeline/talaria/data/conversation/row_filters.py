"""Rows that are sound and still not wanted: duplicates and blank answers."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.compute as pc

from talaria.data.conversation.by_row import TOOLS
from talaria.data.conversation.columnar import column_of, list_offsets
from talaria.data.conversation.content import ASSISTANT
from talaria.data.conversation.drop_reasons import DUPLICATE, EMPTY_ANSWER
from talaria.data.conversation.row_shape import MESSAGES
from talaria.data.readers.row_chunk import Chunk


def drop_empty_answers(chunk: Chunk) -> Chunk:
    """Without the rows in which an assistant message is blank and calls no tool."""
    messages = column_of(chunk.table, MESSAGES)
    turns = messages.flatten()
    blank = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(pc.struct_field(turns, "content"))), 0)
    empty = pc.and_(blank, pc.equal(pc.struct_field(turns, "role"), ASSISTANT))
    if turns.type.get_field_index("tool_calls") >= 0:
        empty = pc.and_(empty, pc.struct_field(turns, "tool_calls").is_null())
    rows = pc.list_parent_indices(messages).filter(empty).unique().to_pylist()
    return chunk.without(dict.fromkeys(rows, (EMPTY_ANSWER, "has a blank answer")))


def drop_duplicates(chunk: Chunk, seen: set[bytes]) -> Chunk:
    """Without the rows whose messages and tools are in `seen`, or earlier in the chunk; `seen` grows by the others."""
    tools = column_of(chunk.table, TOOLS) if TOOLS in chunk.table.column_names else None
    repeated = []
    for row, digest in enumerate(digests(column_of(chunk.table, MESSAGES), tools)):
        if digest in seen:
            repeated.append(row)
        seen.add(digest)
    return chunk.without(dict.fromkeys(repeated, (DUPLICATE, "repeats an earlier row")))


def digests(messages: pa.ListArray, tools: pa.Array | None = None) -> list[bytes]:
    """16 bytes a row that two rows share only if their messages are equal (but for a hash collision, 2**-128 a pair).

    With `tools`, two rows with equal messages and other tools differ.
    """
    import xxhash

    turns = messages.flatten()
    role, content, *further = (pc.struct_field(turns, field.name) for field in turns.type)
    # role, length, content, so that no text can look like the end of its message
    length = pc.fill_null(pc.binary_length(content).cast(pa.string()), "null")
    texts = [pc.fill_null(values, "").cast(pa.large_string()) for values in (role, length, content)]
    flat = pc.binary_join_element_wise(*texts, *(_as_text(values) for values in further), pa.scalar("\n", pa.large_string()))
    rows = pc.binary_join(pa.ListArray.from_arrays(list_offsets(messages), flat), pa.scalar("", pa.large_string()))
    own = rows.cast(pa.large_binary()).to_pylist()
    if tools is not None:
        own = [text + b"\0" + (tool or "").encode() for text, tool in zip(own, tools.to_pylist(), strict=True)]
    return [xxhash.xxh3_128_digest(row) for row in own]


def _as_text(values: pa.Array) -> pa.Array:
    return pa.array([json.dumps(value, sort_keys=True, default=str) for value in values.to_pylist()], pa.large_string())
