"""Reading a messages parquet in chunks of fixed rows, and working on them with threads while keeping their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 4096
"""Rows that are encoded together and become one record batch. It decides where batches end, so the bytes of a shard."""


class Chunk(NamedTuple):
    """Rows [start, stop) of the parquet, part of one shard."""

    shard: int
    start: int
    stop: int


def chunks_of(rows: int, shard_rows: int, part: int, parts: int) -> list[Chunk]:
    """The chunks of part `part` of `parts`: whole shards, in order."""
    count = -(-rows // shard_rows)
    ends = {shard: min(rows, (shard + 1) * shard_rows) for shard in range(part * count // parts, (part + 1) * count // parts)}
    return [
        Chunk(shard, start, min(end, start + CHUNK))
        for shard, end in ends.items()
        for start in range(shard * shard_rows, end, CHUNK)
    ]


def read(file: pq.ParquetFile, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, pa.Array]]:
    """Each of these consecutive chunks with its messages, streamed: memory does not grow with the file or its row groups."""
    if not chunks:
        return
    groups, row = _groups(file, chunks[0].start, chunks[-1].stop)
    batches = file.iter_batches(CHUNK, row_groups=groups, columns=["messages"])
    held = pa.nulls(0, file.schema_arrow.field("messages").type)
    for chunk in chunks:
        while row + len(held) < chunk.stop:
            batch = next(batches).column(0)
            held = pa.concat_arrays([held, batch]) if len(held) else batch
            if row + len(held) <= chunk.start:  # rows of the row group before the first chunk
                row, held = row + len(held), held[len(held) :]
        yield chunk, held[chunk.start - row : chunk.stop - row]
        row, held = chunk.stop, held[chunk.stop - row :]


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
