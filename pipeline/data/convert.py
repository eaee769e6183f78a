"""The convert stage: conversations in any accepted form to messages.parquet, streamed in chunks.

Chunks are parsed and converted by threads and written in order, so memory holds a few chunks however long the source is.
A pretty-printed array of known columns takes the quick way: cut by indentation, types declared. Whatever it does not hold
for is read twice, once for the types and once for the rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import Config, Convert
from pipeline.data import shape
from pipeline.data.chunk import Chunk
from pipeline.data.messages import add_messages, drop_duplicates, drop_empty_answers, messages_schema, shape_of
from pipeline.data.parse import NeedsCare, infer_files, parse_chunk, quick_schema
from pipeline.data.rows import Layout, read_chunks
from pipeline.data.shape import Names
from pipeline.data.sources import SourceFile, find_files
from pipeline.errors import DataError, UserError
from pipeline.tokens.chunks import ordered
from pipeline.tokens.folder import beside

MESSAGES = "messages.parquet"
BATCH = 8192
"""Rows of a parquet source that are converted together."""
THREADS = 8
"""At most: each holds a chunk or two, and one thread writes what all of them make."""
Facts = dict[str, Any]


def fingerprint(config: Config) -> Any:
    """What outside the store decides the output: the source of the plugged-in function."""
    if config.convert.function is None:
        return None
    from pipeline.data.custom import source_digest

    return source_digest(config.convert.function)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    """The stage: the data files of `download` to messages.parquet."""
    return convert(inputs["download"] / "data", out_dir / MESSAGES, config.convert)


def convert(source: Path, output: Path, config: Convert) -> Facts:
    """Convert a file or a folder to one parquet, which appears at `output` whole or not at all. Returns the counts.

    Raises DataError, one sentence with file and row, where the source cannot be used.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name a file, for example {output / MESSAGES}.")
    files = find_files(source)
    with beside(output) as work:
        if config.function:
            from pipeline.data.custom import apply

            files = [apply(config.function, files, work, partial(fill, config=Convert()))]
        target = work / MESSAGES
        facts = fill(files, target, config)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        target.replace(output.resolve())
    return facts | {"bytes": output.stat().st_size}


def fill(files: Sequence[SourceFile], target: Path, config: Convert) -> Facts:
    threads = min(THREADS, len(os.sched_getaffinity(0)))
    if files[0].is_parquet:
        return write(parquet_source(files), target, config, threads)
    schema = quick_schema(files)
    if schema is not None:
        try:
            return write(json_source(files, schema, exact=False), target, config, threads)
        except NeedsCare:
            pass
    return write(json_source(files, infer_files(files, threads), exact=True), target, config, threads)


@dataclass(frozen=True)
class Source:
    """Chunks of a source in order, and how one becomes a table."""

    name: str
    schema: pa.Schema
    chunks: Iterator[tuple[str, Any]]
    """(file's name, what `read` takes)."""
    read: Callable[[Any], Chunk]


def json_source(files: Sequence[SourceFile], schema: pa.Schema, *, exact: bool) -> Source:
    def chunks() -> Iterator[tuple[str, bytes]]:
        for file in files:
            with file.open() as stream:
                for chunk in read_chunks(stream, Layout.of(stream, file.name), exact=exact):
                    yield file.name, chunk

    return Source(files[0].name, schema, chunks(), partial(parse_chunk, schema=schema, exact=exact))


def parquet_source(files: Sequence[SourceFile]) -> Source:
    """Parquet files as one, in the schema that holds them all."""
    opened = [(file.name, open_parquet(file)) for file in files]
    try:
        schema = pa.unify_schemas([file.schema_arrow.remove_metadata() for _, file in opened], promote_options="permissive")
    except pa.ArrowTypeError as error:
        raise DataError(f"{files[0].name}: its columns do not go together with the other files': {error}.") from None

    def chunks() -> Iterator[tuple[str, pa.RecordBatch]]:
        for name, file in opened:
            for batch in file.iter_batches(BATCH):
                yield name, batch

    def read(batch: pa.RecordBatch) -> Chunk:
        table = pa.Table.from_batches([batch])
        for column in schema:
            if column.name not in table.column_names:
                table = table.append_column(column, pa.nulls(len(table), column.type))
        return Chunk.whole(table.select(schema.names).cast(schema))

    return Source(files[0].name, schema, chunks(), read)


def open_parquet(file: SourceFile) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file.path if not file.compressed else pa.BufferReader(file.open().read()))
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.name}: not a parquet file that can be read ({error}).") from None


def write(source: Source, target: Path, config: Convert, threads: int) -> Facts:
    """Convert every chunk and write the rows that are left."""
    names = shape_of(source.schema, source.name)
    schema = messages_schema(source.schema, names)
    dropped = Counter(dict.fromkeys(shape.REASONS, 0))
    rows = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for chunk in convert_chunks(source, names, config, threads):
            dropped.update(bad.reason for bad in chunk.bad)
            rows += len(chunk.table)
            if len(chunk.table):
                writer.write_table(chunk.table.cast(schema))
    return {"rows_in": rows + dropped.total(), "rows": rows, "dropped": dict(dropped), "columns": schema.names}


def convert_chunks(source: Source, names: Names, config: Convert, threads: int) -> Iterator[Chunk]:
    """The source's chunks with their messages, in order. Raises DataError at the first bad row, unless they are dropped."""

    def work(item: tuple[str, Any]) -> tuple[str, Chunk]:
        file, raw = item
        chunk = add_messages(source.read(raw), names)
        return file, drop_empty_answers(chunk) if config.drop_empty_answers else chunk

    seen: set[bytes] = set()
    left, row, current = config.rows, 0, ""
    for file, chunk in ordered(work, source.chunks, threads):
        row = row if file == current else 0
        current = file
        if left is not None:
            chunk = chunk.head(left)
            left -= chunk.size
        refuse(chunk, file, row, config)
        row += chunk.size
        yield drop_duplicates(chunk, seen) if config.drop_duplicates else chunk
        if left == 0:
            return


def refuse(chunk: Chunk, file: str, first_row: int, config: Convert) -> None:
    fatal = shape.ALWAYS_FATAL if config.on_bad_row == "drop" else shape.FATAL
    for bad in chunk.bad:
        if bad.reason in fatal:
            hint = "" if bad.reason in shape.ALWAYS_FATAL else "; fix the row or set convert.on_bad_row to drop"
            raise DataError(f"{file}: row {first_row + bad.row} (counted from 0): {bad.detail}{hint}.")
