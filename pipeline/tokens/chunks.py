"""Reading a messages parquet in chunks of fixed rows, and working on them with threads while keeping their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import DataError

CHUNK = 4096
"""Rows that are encoded together and become one record batch. It decides where batches end, so the bytes of a shard."""

T = TypeVar("T")
Out = TypeVar("Out")


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


def open_parquet(path: Path) -> pq.ParquetFile:
    """Raises DataError where the file is not a parquet with `messages: list<struct<role, content, ...>>`."""
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


def ordered(work: Callable[[T], Out], items: Iterable[T], threads: int, ahead: int = 1) -> Iterator[Out]:
    """work(item) for each item, by `threads` threads, in order, with at most `ahead` items more in flight.

    An error of any item is raised here, and what is under way is waited for.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        pending: deque[Future[Out]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > threads + ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
