"""Reading a messages parquet in chunks of fixed rows, and working on them with threads while keeping their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from talaria.common.arrow import to_arrow
from talaria.common.errors import DataError

CHUNK = 4096
"""Rows that are encoded together and become one record batch. It decides where batches end, so the bytes of a shard."""


class RowRange(NamedTuple):
    """Rows [start, stop) of the parquet, part of one shard."""

    shard: int
    start: int
    stop: int


def chunks_of(rows: int, shard_rows: int, part: int, parts: int) -> list[RowRange]:
    """The chunks of part `part` of `parts`: whole shards, in order."""
    count = -(-rows // shard_rows)
    ends = {shard: min(rows, (shard + 1) * shard_rows) for shard in range(part * count // parts, (part + 1) * count // parts)}
    return [
        RowRange(shard, start, min(end, start + CHUNK))
        for shard, end in ends.items()
        for start in range(shard * shard_rows, end, CHUNK)
    ]


class MessageRows(NamedTuple):
    """Rows of the parquet."""

    messages: pa.Array
    """list<struct<role, content, ...>>"""
    tools: pa.Array | None
    """The JSON text of each row's list of tools; None where the parquet has no such column."""

    def take(self, numbers: Sequence[int]) -> MessageRows:
        indices = to_arrow(np.array(numbers, np.int64))
        return MessageRows(self.messages.take(indices), self.tools.take(indices) if self.tools is not None else None)

    def slice(self, start: int, stop: int) -> MessageRows:
        length = stop - start
        return MessageRows(
            self.messages.slice(start, length), self.tools.slice(start, length) if self.tools is not None else None
        )


def read(file: pq.ParquetFile, chunks: Sequence[RowRange]) -> Iterator[tuple[RowRange, MessageRows]]:
    """Each of these consecutive chunks with its rows, streamed: memory does not grow with the file or its row groups."""
    if not chunks:
        return
    groups, row = _groups(file, chunks[0].start, chunks[-1].stop)
    columns = columns_of(file.schema_arrow)
    batches = file.iter_batches(CHUNK, row_groups=groups, columns=columns)
    held: list[pa.RecordBatch] = []  # end to end, from `row` on
    for chunk in chunks:
        while row + sum(map(len, held)) < chunk.stop:
            held.append(next(batches))
            if row + len(held[0]) <= chunk.start:  # rows of the row group before the first chunk
                row += len(held.pop())
        here, held = _cut(held, chunk.start - row, chunk.stop - row)
        yield chunk, MessageRows(here.column("messages"), here.column("tools") if "tools" in columns else None)
        row = chunk.stop


def _cut(held: Sequence[pa.RecordBatch], start: int, stop: int) -> tuple[pa.RecordBatch, list[pa.RecordBatch]]:
    """Rows [start, stop) of batches that lie end to end, and what follows them; only the rows of two batches are copied."""
    wanted: list[pa.RecordBatch] = []
    rest: list[pa.RecordBatch] = []
    first = 0
    for batch in held:
        begin, end = max(start - first, 0), min(stop - first, len(batch))
        if end > begin:
            wanted.append(batch.slice(begin, end - begin))
        if end < len(batch):
            rest.append(batch.slice(max(end, 0)))
        first += len(batch)
    return wanted[0] if len(wanted) == 1 else pa.concat_batches(wanted), rest


def columns_of(schema: pa.Schema) -> list[str]:
    """The columns that are tokenised. Raises DataError where there are tools, but not as JSON text."""
    at = schema.get_field_index("tools")
    if at < 0 or pa.types.is_null(schema.field(at).type):
        return ["messages"]
    if schema.field(at).type not in (pa.string(), pa.large_string(), pa.string_view()):
        raise DataError(
            f"the column tools should hold the JSON text of a list, found {schema.field(at).type}; "
            "make the parquet with `talaria convert`, or rename the column where it is no list of tools."
        )
    return ["messages", "tools"]


def _groups(file: pq.ParquetFile, start: int, stop: int) -> tuple[list[int], int]:
    """The row groups that hold rows [start, stop), and the first row of the first of them."""
    groups: list[int] = []
    first = row = 0
    for group in range(file.metadata.num_row_groups):
        end = row + file.metadata.row_group(group).num_rows
        if end > start and row < stop:
            first = first if groups else row
            groups.append(group)
        row = end
    return groups, first
