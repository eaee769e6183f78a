"""From rows of any shape to messages, one row at a time, and from those to columns again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from talaria.data.conversation.content import KNOWN_FIELDS, Message
from talaria.data.conversation.drop_reasons import Unusable
from talaria.data.conversation.row_shape import MESSAGES, ConvertedRow, RowShape
from talaria.data.messages_parquet import narrowed
from talaria.data.readers import column_types
from talaria.data.readers.json_parse import NeedsRows
from talaria.data.readers.row_chunk import Chunk, RowValues

TOOLS = "tools"
KNOWN = {
    "role": pa.string(),
    "content": pa.string(),
    "reasoning_content": pa.string(),
    "tool_calls": pa.string(),
    "name": pa.string(),
    "tool_call_id": pa.string(),
    "train": pa.bool_(),
    "weight": pa.float64(),
    "step_loss_mask": pa.int64(),
}
"""The fields that a message may have, in this order; all but role and content only where some message has them."""


def message_types(columns: Mapping[str, pa.DataType], shape: RowShape) -> dict[str, pa.DataType]:
    """The fields of the messages column: KNOWN, then the further ones of a source in that shape, in the source's types."""
    further: dict[str, pa.DataType] = {}
    kind = columns.get(MESSAGES)
    if kind is not None and pa.types.is_list(kind) and pa.types.is_struct(kind.value_type):
        own = (*KNOWN_FIELDS, *map(shape.column, ("role", "content", "reasoning_content", "tool_calls")), "from", "value")
        further = {field.name: column_types.storable(field.type) for field in kind.value_type if field.name not in own}
    return KNOWN | further


def schema(columns: Mapping[str, pa.DataType], types: Mapping[str, pa.DataType]) -> pa.Schema:
    """The schema that `convert_rows` gives: the source's columns, then `tools` and `messages`."""
    side = {name: kind for name, kind in columns.items() if name not in (TOOLS, MESSAGES)}
    message = column_types.written(dict(types))
    fields = [*column_types.written(side), pa.field(TOOLS, pa.string()), pa.field(MESSAGES, pa.list_(pa.struct(list(message))))]
    return pa.schema(fields)


def convert_rows(rows: RowValues, shape: RowShape, types: Mapping[str, pa.DataType]) -> Chunk:
    """The rows' chunk with `tools` and `messages` in place of the source's own.

    Rows without a conversation are set aside, with what is wrong with them.
    """
    found: list[ConvertedRow] = []
    bad: dict[int, tuple[str, str]] = {}
    notes: Counter[str] = Counter()
    for number, row in enumerate(rows.values):
        try:
            conversation = shape.conversation(row)
        except Unusable as problem:
            bad[number] = (problem.reason, problem.detail)
            continue
        found.append(conversation)
        notes.update([f"shape {conversation.shape}"])
        notes.update(f"mapped {name}" for name in conversation.notes.mapped)
        notes.update(f"not carried {name}" for name in conversation.notes.not_carried)
    chunk = rows.chunk(bad, notes)
    side = chunk.table.drop_columns([name for name in (TOOLS, MESSAGES) if name in chunk.table.column_names])
    tools = pa.array([conversation.tools for conversation in found], pa.string())
    messages = messages_array([conversation.messages for conversation in found], types)
    return replace(chunk, table=side.append_column(TOOLS, tools).append_column(MESSAGES, messages))


def narrowed_to(chunk: Chunk, schema: pa.Schema) -> Chunk:
    """The chunk in a schema with fewer fields. Raises NeedsRows where a value has no place in it."""
    wanted = {field.name for field in schema.field(MESSAGES).type.value_type}
    turns = chunk.table.column(MESSAGES).combine_chunks().flatten()
    lost = [turns.field(number) for number, field in enumerate(turns.type) if field.name not in wanted]
    if TOOLS not in schema.names:
        lost.append(chunk.table.column(TOOLS))
    if any(values.null_count < len(values) for values in lost):
        raise NeedsRows
    try:
        return replace(chunk, table=narrowed(chunk.table, schema))
    except pa.ArrowInvalid:  # a switch that is no whole number, where those before were
        raise NeedsRows from None


def messages_array(conversations: Sequence[list[Message]], types: Mapping[str, pa.DataType]) -> pa.ListArray:
    """list<struct<...>> of these types; a field that a message does not have is null."""
    flat = [message for messages in conversations for message in messages]
    fields = [column_types.to_column([message.get(name) for message in flat], kind) for name, kind in types.items()]
    offsets = [0]
    for messages in conversations:
        offsets.append(offsets[-1] + len(messages))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.StructArray.from_arrays(fields, list(types)))
