"""messages.parquet: its name, its schema, how it is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from talaria.common.errors import DataError

MESSAGES = "messages.parquet"


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a messages parquet. Raises DataError if it has no column `messages: list<struct<role, content, ...>>`."""
    try:
        # pre_buffer, the default, keeps all it has read until the end: half a gigabyte for a million conversations
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; make it with `talaria convert`.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path}: not a parquet file that can be read ({error}).") from error
    names = file.schema_arrow.names
    kind = file.schema_arrow.field("messages").type if "messages" in names else None
    if not _is_conversation(kind):
        found = f"messages: {kind}" if kind is not None else f"the columns {', '.join(names)}"
        raise DataError(
            f"{path}: needs a column messages: list<struct<role, content>>, found {found}; `talaria convert` makes one."
        )
    return file


def _is_conversation(kind: Any) -> bool:
    is_list = kind is not None and (pa.types.is_list(kind) or pa.types.is_large_list(kind))
    if not (is_list and pa.types.is_struct(kind.value_type)):
        return False
    fields = {field.name: field.type for field in kind.value_type}
    texts = (pa.string(), pa.large_string(), pa.string_view())
    return fields.get("role") in texts and fields.get("content") in texts


CONTENT = "messages.list.element.content"
"""The column that is never compressed: every tokenisation reads it again."""


def codecs(schema: pa.Schema) -> dict[str, str]:
    """Return the codec of each column of the parquet file: none for the text of conversations, LZ4 for everything else.

    One thread writes the file. Compressing the source's own turns, which hold the same text as `messages`, took longer than all
    the rest of its work, for a file that is a fifth smaller.
    """
    paths, texts = [path for column in schema for path in _leaves(column.type, column.name)], _texts(schema)
    return {path: "none" if path in texts else "lz4" for path in paths}


def _texts(schema: pa.Schema) -> set[str]:
    """The content of messages, and all texts within columns that hold conversations as the source has them."""
    strings = (pa.string(), pa.large_string())
    turns = {
        column.name: column.type.value_type
        for column in schema
        if column.name != "messages" and pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)
    }
    texts = [(name, field.name) for name, turn in turns.items() for field in turn if field.type in strings]
    return {CONTENT} | {f"{name}.list.element.{field}" for name, field in texts}


def _leaves(kind: pa.DataType, path: str) -> Iterator[str]:
    if pa.types.is_list(kind):
        yield from _leaves(kind.value_type, f"{path}.list.element")
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, f"{path}.{field.name}")
    else:
        yield path


def made_by_convert(path: Path) -> bool:
    """Return whether convert wrote the file: nobody else compresses with LZ4 all but the messages' text.

    The other texts of conversations may be either: earlier versions compressed them.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError):
        return False
    if not metadata.num_row_groups:
        return False
    group = metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    found = {column.path_in_schema: column.compression for column in columns}
    texts = _texts(schema)
    return found.get(CONTENT) == "UNCOMPRESSED" and all(codec == "LZ4" for path, codec in found.items() if path not in texts)


def used_fields(table: pa.Table) -> set[str]:
    """Return the fields of messages that have a value, and `tools` if that column has one."""
    turns = table.column("messages").combine_chunks().flatten()
    names = {field.name for number, field in enumerate(turns.type) if turns.field(number).null_count < len(turns)}
    return names | ({"tools"} if table.column("tools").null_count < len(table) else set())


def keep_fields(path: Path, used: set[str], keep_tools: bool) -> None:
    """Write the file again with role, content and the `used` fields of messages, and `tools` where it is used or kept.

    What a parquet's own statistics say of nulls inside lists is not reliable.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        turn = file.schema_arrow.field("messages").type.value_type
        fields = [field for field in turn if field.name in {"role", "content", *used}]
        keep_tools = keep_tools or "tools" in used
        if len(fields) == turn.num_fields and keep_tools:
            return
        kept = {column.name: column.type for column in file.schema_arrow if keep_tools or column.name != "tools"}
        narrow = pa.schema(list((kept | {"messages": pa.list_(pa.struct(fields))}).items()))
        partial = path.with_name(f"{path.name}.narrow")
        with pq.ParquetWriter(partial, narrow, compression=codecs(narrow)) as writer:
            for group in range(file.metadata.num_row_groups):
                writer.write_table(narrowed(file.read_row_group(group), narrow))
    partial.replace(path)


def narrowed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with only the columns of `schema`, and only its fields of messages."""
    arrays = []
    for column in schema:
        values = table.column(column.name).combine_chunks()
        if column.name == "messages":
            turns = values.flatten()
            names = [field.name for field in column.type.value_type]
            structs = pa.StructArray.from_arrays([pc.struct_field(turns, name) for name in names], names)
            values = pa.ListArray.from_arrays(pc.subtract(values.offsets, values.offsets[0]), structs)
        arrays.append(values.cast(column.type))
    return pa.Table.from_arrays(arrays, schema=schema)
