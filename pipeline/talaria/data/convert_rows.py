"""From data files to one parquet of messages: the quickest way to read that holds for the files, chunk by chunk, in order."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from talaria.common.errors import DataError
from talaria.common.threads import ordered
from talaria.config.data_settings import Convert
from talaria.data.conversation import by_row
from talaria.data.conversation.columnar import PlainTurns, add_messages, odd_rows, plain_turns
from talaria.data.conversation.drop_reasons import ALWAYS_FATAL, FATAL, INVALID, NOT_AN_OBJECT, REASONS, WAY_OUT, kind_of
from talaria.data.conversation.row_filters import drop_duplicates, drop_empty_answers
from talaria.data.conversation.row_shape import RowShape
from talaria.data.messages_parquet import codecs, keep_fields, used_fields
from talaria.data.readers.column_types import written
from talaria.data.readers.json_parse import NeedsRows
from talaria.data.readers.row_chunk import Chunk
from talaria.data.readers.stream import Stream, streams
from talaria.data.source_files import SourceFile

THREADS = 8
"""At most: each holds a chunk or two, and one thread writes what all of them make."""
Facts = dict[str, Any]
OnRows = Callable[[int, None], None]
"""Called with the source's rows done so far, and None: how many there are is known at the end only."""


@dataclass(frozen=True)
class Step:
    """How a raw chunk of a stream becomes a chunk of rows to write, and the schema of those."""

    stream: Stream
    schema: pa.Schema
    read: Callable[[Any], Chunk]
    """Raises NeedsRows where another step must read the stream."""
    makes_messages: bool = True


def write_messages(files: Sequence[SourceFile], target: Path, config: Convert, on_rows: OnRows | None = None) -> Facts:
    """Write the conversations of the files to `target`, as whole columns where that holds, else row by row.

    Raises DataError, one sentence with file and row, where the source cannot be used.
    """
    shape = RowShape(config.fields, config.roles)
    for stream in streams(files, threads(), shape, to_the_end=config.rows is None):
        for step in message_steps(stream, shape):
            try:
                made = write(step, target, config, on_rows)
            except NeedsRows:
                continue
            return finish(made, stream, target)
    raise AssertionError("the last way to read takes care of everything")


def copy_rows(files: Sequence[SourceFile], target: Path, config: Convert) -> Facts:
    """Write the rows of the files to `target` as they are, for a function of the user's to look at."""
    for stream in streams(files, threads(), None, to_the_end=config.rows is None):
        try:
            step = Step(stream, written(stream.columns), partial(_as_they_are, stream), False)
            return counted(write(step, target, config, None), stream)
        except NeedsRows:
            continue
    raise AssertionError("the last way to read takes care of everything")


def threads() -> int:
    return min(THREADS, len(os.sched_getaffinity(0)))


def message_steps(stream: Stream, shape: RowShape) -> Iterator[Step]:
    """The ways from the stream's chunks to messages, the quick one first. Raises DataError where no row can hold any."""
    if not stream.columns:
        raise DataError(f"{stream.name}: holds no row with any column.")
    if not shape.fits(stream.columns):
        found = ", ".join(stream.columns)
        own = _example([name for name, kind in stream.columns.items() if _holds_turns(kind)])
        raise DataError(
            f"{stream.name}: no column 'conversations' or 'messages', and no pair like instruction and output, found {found}; "
            f"name the columns with convert.fields{own}, or make one with convert.function."
        )
    plain = plain_turns(dict(stream.columns), shape)
    if plain:
        yield Step(stream, plain.schema(written(stream.columns)), partial(_by_columns, stream, shape, plain))
    if stream.has_rows:
        types = by_row.message_types(stream.columns, shape)
        open_shape = replace(shape, extras=frozenset(types.keys() - by_row.KNOWN.keys()))
        yield Step(stream, by_row.schema(stream.columns, types), partial(_by_rows, stream, open_shape, types))


def _example(turns: list[str]) -> str:
    """An example of convert.fields for columns that hold turns; of prompt, chosen and rejected, the answer is in the second."""
    first, *others = turns or [""]
    wanted = f"completion={others[0]}" if first == "prompt" and others else f"messages={first}"
    return f" (convert.fields.{wanted}, say)" if first else ""


def _holds_turns(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type)):
        return False
    fields = {field.name for field in kind.value_type}
    return any(turn <= fields for turn in ({"role", "content"}, {"from", "value"}, {"input", "output"}))


def _by_columns(stream: Stream, shape: RowShape, plain: PlainTurns, raw: Any) -> Chunk:
    """Whole columns; odd rows one by one into the same schema, where they cannot be told from the others the whole chunk."""
    table = None
    try:
        table = stream.table(raw)
        return _noted(add_messages(table, plain), plain)
    except NeedsRows:
        if not stream.has_rows:
            raise
    apart = None if table is None else _few_apart(stream, shape, plain, raw, table)
    if apart is not None:
        return apart
    return by_row.narrowed_to(_by_rows(stream, shape, by_row.KNOWN, raw), plain.schema(written(stream.columns)))


def _few_apart(stream: Stream, shape: RowShape, plain: PlainTurns, raw: Any, table: pa.Table) -> Chunk | None:
    """A chunk with a few odd rows: those one by one, the others as whole columns. None where that cannot be done."""
    odd = np.flatnonzero(odd_rows(table, plain))
    some = stream.only(raw, odd.tolist(), len(table)) if 0 < 4 * len(odd) <= len(table) else None
    if some is None:
        return None
    try:
        ones = by_row.narrowed_to(_by_rows(stream, shape, by_row.KNOWN, some), plain.schema(written(stream.columns)))
        even = np.ones(len(table), np.bool_)
        even[odd] = False
        others = _noted(add_messages(table.filter(pa.array(even)), plain), plain)
    except NeedsRows:
        return None
    if ones.size != len(odd) or any(bad.reason == INVALID for bad in ones.bad):  # lines that are no rows
        return None
    return others.with_rows(np.flatnonzero(even), ones, odd)


def _noted(table: pa.Table, plain: PlainTurns) -> Chunk:
    return replace(Chunk.whole(table), notes=Counter({f"shape {plain.column}": len(table)}))


def _by_rows(stream: Stream, shape: RowShape, types: dict[str, pa.DataType], raw: Any) -> Chunk:
    return by_row.convert_rows(stream.rows(raw, shape.columns), shape, types)


def _as_they_are(stream: Stream, raw: Any) -> Chunk:
    try:
        return Chunk.whole(stream.table(raw))
    except NeedsRows:
        if not stream.has_rows:
            raise
    rows = stream.rows(raw, ())
    odd = {place: row for place, row in enumerate(rows.values) if not isinstance(row, dict)}
    return rows.chunk({place: (NOT_AN_OBJECT, f"not an object but {kind_of(row)}") for place, row in odd.items()})


class Example(NamedTuple):
    """A row that was dropped; it counts from 0 in its file."""

    file: str
    row: int
    detail: str


@dataclass
class Made:
    """What was written, and what became of every row."""

    rows: int = 0
    repaired: int = 0
    dropped: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(REASONS, 0)))
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, Example] = field(default_factory=dict)
    """Of each reason the first row."""
    sizes: Counter[str] = field(default_factory=Counter)
    """Rows of each file."""
    used: set[str] | None = None
    """The fields of messages that have a value, where all that a message may have are written; else None."""


def counted(made: Made, stream: Stream) -> Facts:
    """The counts as facts: rows_in = rows + dropped. Raises DataError where no row is left."""
    sentences = {
        reason: f"{file}: row {row} (counted from 0): {detail}." for reason, (file, row, detail) in made.examples.items()
    }
    if not made.rows:
        found = {reason: count for reason, count in made.dropped.items() if count}
        first = f"; the first: {next(iter(sentences.values()))}" if sentences else "."
        raise DataError(f"{stream.name}: no row is left to write; dropped: {found or 'none'}{first}")
    counts = {
        "rows_in": made.rows + made.dropped.total(),
        "rows": made.rows,
        "dropped": dict(made.dropped),
        "repaired": made.repaired,
    }
    return counts | by_name(made.notes) | ({"examples": sentences} if sentences else {})


def finish(made: Made, stream: Stream, target: Path) -> Facts:
    """Take what no message uses out of the messages written to `target`. Returns the facts; raises DataError as `counted`."""
    facts = counted(made, stream)
    if made.used is not None:
        keep_fields(target, made.used, keep_tools=by_row.TOOLS in stream.columns)
    return facts | {"columns": pq.read_schema(target).names}


def write(step: Step, target: Path, config: Convert, on_rows: OnRows | None) -> Made:
    """Write all chunks to `target`. Raises DataError at a row that stops the run."""
    made = Made(used=set() if by_row.TOOLS in step.schema.names and step.makes_messages else None)
    with (
        pq.ParquetWriter(target, step.schema, compression=codecs(step.schema)) as writer,
        ThreadPoolExecutor(1, thread_name_prefix="write") as writing,
    ):
        pending: Future[None] | None = None
        for chunk in finished(step, config, made):
            made.dropped.update(bad.reason for bad in chunk.bad)
            made.notes.update(chunk.notes)
            made.rows += len(chunk.table)
            made.repaired += chunk.repaired
            if made.used is not None:
                made.used |= used_fields(chunk.table)
            if on_rows:
                on_rows(made.rows + made.dropped.total(), None)
            if pending:
                pending.result()
            pending = writing.submit(write_chunk, writer, chunk.table.cast(step.schema))
        if pending:
            pending.result()
    return made


def by_name(notes: Counter[str]) -> Facts:
    """The notes as facts: shapes, mapped, not_carried, each a count of rows by name."""
    facts: Facts = {"shapes": {}, "mapped": {}, "not_carried": {}}
    for note, count in sorted(notes.items()):
        for title, prefix in (("shapes", "shape "), ("mapped", "mapped "), ("not_carried", "not carried ")):
            if note.startswith(prefix):
                facts[title][note.removeprefix(prefix)] = count
    return {title: counts for title, counts in facts.items() if counts}


def write_chunk(writer: pq.ParquetWriter, table: pa.Table) -> None:
    if len(table):
        writer.write_table(table)


def finished(step: Step, config: Convert, made: Made) -> Iterator[Chunk]:
    """The chunks in order. Raises DataError at the first bad row, unless bad rows are dropped.

    `made` gets the rows of each file, and of each reason to drop one the first row.
    """

    def work(item: tuple[str, Any]) -> tuple[str, Chunk]:
        file, raw = item
        chunk = step.read(raw)
        return file, drop_empty_answers(chunk) if config.drop_empty_answers and step.makes_messages else chunk

    seen: set[bytes] = set()
    left = config.rows
    for file, chunk in ordered(work, step.stream.chunks(), threads()):
        if left is not None:
            chunk = chunk.head(left)
            left -= chunk.size
        refuse(chunk, file, made.sizes[file], config, made.examples)
        made.sizes[file] += chunk.size
        yield drop_duplicates(chunk, seen) if config.drop_duplicates and step.makes_messages else chunk
        if left == 0:
            return


def refuse(chunk: Chunk, file: str, first_row: int, config: Convert, examples: dict[str, Example]) -> None:
    """Raise DataError for the first bad row that the settings do not drop."""
    fatal = ALWAYS_FATAL if config.on_bad_row == "drop" else FATAL
    for bad in chunk.bad:
        sentence = f"{file}: row {first_row + bad.row} (counted from 0): {bad.detail}"
        if bad.reason in fatal:
            hint = "" if bad.reason in ALWAYS_FATAL else f"; {WAY_OUT}"
            raise DataError(f"{sentence}{hint}.")
        if bad.reason in FATAL:
            examples.setdefault(bad.reason, Example(file, first_row + bad.row, bad.detail))
