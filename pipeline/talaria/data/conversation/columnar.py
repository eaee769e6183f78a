"""From conversations to messages on whole Arrow columns, for sources of plain texts: roles are mapped, no text is copied.

Every row it takes has the messages that RowShape would give it; a chunk in which a row needs to be looked at raises NeedsRows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import scalar, texts, to_arrow, to_numpy
from talaria.data.conversation.content import ASSISTANT, CALL, MESSAGE_ROLES, SHAREGPT_ROLES, SWITCHES
from talaria.data.conversation.row_shape import MESSAGES, RowShape
from talaria.data.readers.json_parse import NeedsRows

_TEXTS = (pa.string(), pa.large_string(), pa.string_view())


@dataclass(frozen=True)
class PlainTurns:
    """A source whose conversations are one column of turns with a role, a text and at most switches of the loss."""

    column: str
    role: str
    text: str
    roles: dict[str, str]
    switches: tuple[str, ...]

    @property
    def keeps_switches(self) -> bool:
        return self.role == "role"

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema that `add_messages` gives: `messages` last, in place of a source's own."""
        fields = [("role", pa.string()), ("content", pa.string())]
        at = schema.get_field_index(self.column)
        if self.keeps_switches:
            turn = schema.field(at).type.value_type
            fields += [(name, turn.field(name).type) for name in self.switches]
        if self.column == MESSAGES:
            schema = schema.remove(at)
        return schema.append(pa.field(MESSAGES, pa.list_(pa.struct(fields))))


def plain_turns(columns: dict[str, pa.DataType], shape: RowShape) -> PlainTurns | None:
    """How the source's turns are read as whole columns, or None where its rows must be looked at one by one."""
    if shape.fields or shape.column("system") in columns or shape.column("tools") in columns:
        return None
    there = [name for name in shape.lists if name in columns]
    if len(there) != 1 or not _is_turns(columns[there[0]]):
        return None
    fields = {field.name: field.type for field in columns[there[0]].value_type}
    for role, text, known in (("role", "content", MESSAGE_ROLES), ("from", "value", SHAREGPT_ROLES)):
        if fields.get(role) in _TEXTS and fields.get(text) in _TEXTS:
            further = {name: kind for name, kind in fields.items() if name not in (role, text)}
            if not all(name in SWITCHES and _is_switch(kind) for name, kind in further.items()):
                return None
            roles = {name: to for name, to in {**known, **shape.roles}.items() if to != CALL}
            return PlainTurns(there[0], role, text, roles, tuple(further))
    return None


def _is_turns(kind: pa.DataType) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_struct(kind.value_type))


def _is_switch(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def odd_rows(table: pa.Table, plain: PlainTurns) -> npt.NDArray[np.bool_]:
    """bool[n]: the rows for which `add_messages` raises NeedsRows."""
    conversations = column_of(table, plain.column)
    turns = conversations.flatten()
    role, text = _map_roles(pc.struct_field(turns, plain.role), plain.roles), pc.struct_field(turns, plain.text)
    odd = pc.or_(pc.or_(role.is_null(), text.is_null()), turns.is_null())
    for name in plain.switches:
        odd = pc.or_(odd, pc.fill_null(_needs_a_look(pc.struct_field(turns, name), role, plain), False))
    found = to_numpy(conversations.is_null()).copy()
    lengths = to_numpy(pc.fill_null(pc.list_value_length(conversations), 0))
    found[np.repeat(np.arange(len(found)), lengths)[to_numpy(odd)]] = True
    return found


def add_messages(table: pa.Table, plain: PlainTurns) -> pa.Table:
    """The table with the column `messages`: list<struct<role: string, content: string, ...>>. Raises NeedsRows."""
    conversations = column_of(table, plain.column)
    turns = conversations.flatten()
    role = _map_roles(pc.struct_field(turns, plain.role), plain.roles)
    content = pc.struct_field(turns, plain.text).cast(pa.string())
    if role.null_count or content.null_count or conversations.null_count or turns.null_count:
        raise NeedsRows
    fields: dict[str, pa.Array] = {"role": role, "content": content}
    switches = {name: pc.struct_field(turns, name) for name in plain.switches}
    if any(pc.any(_needs_a_look(switch, role, plain)).as_py() for switch in switches.values()):
        raise NeedsRows
    if plain.keeps_switches:
        fields |= switches
    if plain.column == MESSAGES:
        table = table.drop_columns([plain.column])
    structs = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    return table.append_column(MESSAGES, pa.ListArray.from_arrays(list_offsets(conversations), structs))


def _needs_a_look(switch: pa.Array, role: pa.Array, plain: PlainTurns) -> pa.Array:
    """bool[turns]: answers whose switch is neither 0 nor 1, or takes them out of the loss where it is not carried as it is."""
    value = switch.cast(pa.float64())
    odd = pc.not_equal(value, 1.0)
    if plain.keeps_switches:
        odd = pc.and_(odd, pc.not_equal(value, 0.0))
    return pc.and_(odd, pc.equal(role, scalar(ASSISTANT).cast(role.type)))


def column_of(table: pa.Table, name: str) -> pa.Array:
    """A column as one array."""
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _map_roles(role: pa.Array, roles: dict[str, str]) -> pa.Array:
    """Roles of our names; null where the source's is unknown or null."""
    found = pc.index_in(role.cast(pa.large_string()), value_set=texts(roles))
    return texts(roles.values()).cast(pa.string()).take(found)


def list_offsets(lists: pa.ListArray) -> pa.Array:
    """Where each list begins in the flattened values: from 0 on, which a slice's own offsets are not. No list is null."""
    width = np.int64 if pa.types.is_large_list(lists.type) else np.int32
    own = np.zeros(1, width)
    if len(lists):
        own = np.frombuffer(lists.buffers()[1], width)[lists.offset : lists.offset + len(lists) + 1]
    return to_arrow((own - own[0]).astype(np.int32, copy=False))
