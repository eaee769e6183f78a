"""The convert stage: conversations in any accepted form to messages.parquet, streamed in chunks.

Chunks are parsed and converted by threads and written in order, so memory holds a few chunks however long the source is.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talaria.common.errors import DataError, UserError
from talaria.common.files import fsync
from talaria.common.output_folder import beside
from talaria.common.threads import ordered
from talaria.config.schema import Config, Convert
from talaria.data import row_format as shape
from talaria.data.json_parse import NeedsCare
from talaria.data.messages import add_messages, drop_duplicates, drop_empty_answers, messages_schema, shape_of
from talaria.data.readers import Stream, streams
from talaria.data.row_chunk import Chunk
from talaria.data.source_files import SourceFile, find_files

MESSAGES = "messages.parquet"
THREADS = 8
"""At most: each holds a chunk or two, and one thread writes what all of them make."""
PLAIN = "messages.list.element.content"
"""The column that is not compressed. Compression is most of what the writing thread does; this text is read again by every
tokenisation, and stands compressed in the source's own column beside it."""
Facts = dict[str, Any]
OnRows = Callable[[int, None], None]
"""Called with the source's rows done so far, and None: how many there are is known at the end only."""


def fingerprint(config: Config) -> Any:
    """What outside the store decides the output: the source of the plugged-in function."""
    if config.convert.function is None:
        return None
    from talaria.data.user_function import source_digest

    return source_digest(config.convert.function)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> Facts:
    """The stage: the data files of `download` to messages.parquet."""
    return convert(inputs["download"] / "data", out_dir / MESSAGES, config.convert)


def convert(source: Path, output: Path, config: Convert, on_rows: OnRows | None = None) -> Facts:
    """Convert a file or a folder to one parquet, which appears at `output` whole or not at all. Returns the counts.

    Raises DataError, one sentence with file and row, where the source cannot be used.
    """
    if output.is_dir():
        raise UserError(f"{output}: is a folder; name a file, for example {output / MESSAGES}.")
    files = find_files(source)
    with beside(output) as work:
        target = work / MESSAGES
        facts = convert_with(config, files, target) if config.function else fill(files, target, config, to_messages, on_rows)
        fsync(target)
        target.replace(output.resolve())
    return facts | {"bytes": output.stat().st_size}


def convert_with(config: Convert, files: Sequence[SourceFile], target: Path) -> Facts:
    """Hand the rows to the user's function as one frame, and convert what it returns."""
    from talaria.data import user_function as custom

    assert config.function
    custom.load(config.function)
    rows, made = target.with_name("rows.parquet"), target.with_name("made.parquet")
    read = fill(files, rows, config, as_they_are)
    returned = custom.apply(config.function, rows, made)
    facts = fill([returned], target, config.model_copy(update={"rows": None}), to_messages)
    dropped: Counter[str] = Counter(read["dropped"]) + Counter(facts["dropped"])
    counts = {reason: dropped[reason] for reason in shape.REASONS}
    own = {"rows_in": read["rows_in"], "rows_of_function": facts["rows_in"], "repaired": read["repaired"]}
    return facts | own | {"dropped": counts}


@dataclass(frozen=True)
class Step:
    """What is done to a chunk after it is read, and the schema of the result."""

    schema: pa.Schema
    apply: Callable[[Chunk], Chunk]


def to_messages(stream: Stream, config: Convert) -> Step:
    names = shape_of(stream.schema, stream.name)

    def apply(chunk: Chunk) -> Chunk:
        chunk = add_messages(chunk, names)
        return drop_empty_answers(chunk) if config.drop_empty_answers else chunk

    return Step(messages_schema(stream.schema, names), apply)


def as_they_are(stream: Stream, config: Convert) -> Step:
    return Step(stream.schema, lambda chunk: chunk)


def fill(
    files: Sequence[SourceFile],
    target: Path,
    config: Convert,
    make_step: Callable[[Stream, Convert], Step],
    on_rows: OnRows | None = None,
) -> Facts:
    """Read the files, the quick way if it holds, and write what the step makes of them."""
    threads = min(THREADS, len(os.sched_getaffinity(0)))
    problem = shape.problem if make_step is to_messages else shape.not_an_object
    for stream in streams(files, threads, problem):
        try:
            return write(stream, make_step(stream, config), target, config, threads, on_rows)
        except NeedsCare:
            continue
    raise AssertionError("the last way to read takes care of everything")


def write(stream: Stream, step: Step, target: Path, config: Convert, threads: int, on_rows: OnRows | None) -> Facts:
    dropped: Counter[str] = Counter(dict.fromkeys(shape.REASONS, 0))
    rows = repaired = 0
    with (
        pq.ParquetWriter(target, step.schema, compression=codecs(step.schema)) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writing,
    ):
        written: Future[None] | None = None
        for chunk in finished(stream, step, config, threads):
            dropped.update(bad.reason for bad in chunk.bad)
            rows += len(chunk.table)
            repaired += chunk.repaired
            if on_rows:
                on_rows(rows + dropped.total(), None)
            if written:
                written.result()
            written = writing.submit(write_chunk, writer, chunk.table.cast(step.schema))
        if written:
            written.result()
    if not rows:
        raise DataError(f"{stream.name}: no row is left to write; dropped: {dict(dropped) if dropped.total() else 'none'}.")
    counts = {"rows_in": rows + dropped.total(), "rows": rows, "dropped": dict(dropped), "repaired": repaired}
    return counts | {"columns": step.schema.names}


def codecs(schema: pa.Schema) -> dict[str, str]:
    """LZ4 for each column of the parquet file but one: the size of snappy at three quarters of zstd's time."""

    def leaves(kind: pa.DataType, path: str) -> Iterator[str]:
        if pa.types.is_list(kind):
            yield from leaves(kind.value_type, f"{path}.list.element")
        elif pa.types.is_struct(kind):
            for field in kind:
                yield from leaves(field.type, f"{path}.{field.name}")
        else:
            yield path

    paths = [path for column in schema for path in leaves(column.type, column.name)]
    return {path: "none" if path == PLAIN else "lz4" for path in paths}


def write_chunk(writer: pq.ParquetWriter, table: pa.Table) -> None:
    if len(table):
        writer.write_table(table)


def finished(stream: Stream, step: Step, config: Convert, threads: int) -> Iterator[Chunk]:
    """The chunks in order. Raises DataError at the first bad row, unless bad rows are dropped."""

    def work(item: tuple[str, Any]) -> tuple[str, Chunk]:
        file, raw = item
        return file, step.apply(stream.read(raw))

    seen: set[bytes] = set()
    left, row, current = config.rows, 0, ""
    for file, chunk in ordered(work, stream.chunks, threads):
        row = row if file == current else 0
        current = file
        if left is not None:
            chunk = chunk.head(left)
            left -= chunk.size
        refuse(chunk, file, row, config)
        row += chunk.size
        yield drop_duplicates(chunk, seen) if config.drop_duplicates and "messages" in step.schema.names else chunk
        if left == 0:
            return


def refuse(chunk: Chunk, file: str, first_row: int, config: Convert) -> None:
    fatal = shape.ALWAYS_FATAL if config.on_bad_row == "drop" else shape.FATAL
    for bad in chunk.bad:
        if bad.reason in fatal:
            hint = "" if bad.reason in shape.ALWAYS_FATAL else "; fix the row or set convert.on_bad_row to drop"
            raise DataError(f"{file}: row {first_row + bad.row} (counted from 0): {bad.detail}{hint}.")
