"""Convert shared out between workers by files and ranges of bytes, with the bytes of one process.

Two rounds: each part says which columns its rows have, and whether whole columns do for them; then, with the columns of all, each
part is converted in the way that does for all, and the parts are joined row group by row group. Where the parts do not go
together (a row that stops the run), the join converts everything again in one process, which is right whatever the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from talaria.common.errors import DataError
from talaria.common.threads import ordered
from talaria.config.data_settings import Convert
from talaria.data.conversation.row_shape import RowShape
from talaria.data.convert_rows import Example, Facts, Made, finish, message_steps, threads, write
from talaria.data.messages_parquet import MESSAGES, codecs
from talaria.data.readers import file_ranges
from talaria.data.readers.column_types import join_columns
from talaria.data.readers.json_parse import NeedsRows
from talaria.data.readers.json_schema import found_columns, quick_schema, settled
from talaria.data.readers.stream import JsonReader, Stream
from talaria.data.readers.tables import TableReader
from talaria.data.source_files import SourceFile, search

COLUMNS, PART = "columns.arrow", "part.json"
STEP = b"step"
"""In the columns' metadata: the number of the first of `message_steps` that does for the part's rows."""


def shares(data: Path, parts: int) -> list[list[SourceFile]]:
    """What each part reads of the folder `data`, without empty ones. One list where the files cannot be shared out."""
    files = search(data, all_splits=True).files
    if files[0].kind == "json" and quick_schema(files) is not None:
        return [files]  # one pretty-printed array, most likely: it is cut by its indentation from its beginning
    return [share for share in file_ranges.share_out(files, parts) if share]


def write_columns(share: Sequence[SourceFile], folder: Path, config: Convert) -> None:
    """Round one: the columns of a part's rows, into `folder`. Tables say theirs themselves."""
    shape = RowShape(config.fields, config.roles)
    is_json = share[0].kind == "json"
    columns = found_columns(share, threads(), shape) if is_json else {}
    stream = JsonReader(share, settled(columns), exact=True) if is_json else TableReader.of(share)
    schema = pa.schema(list(columns.items()), metadata={STEP: str(first_step(stream, shape))})
    (folder / COLUMNS).write_bytes(schema.serialize().to_pybytes())


def first_step(stream: Stream, shape: RowShape) -> int:
    """The number of the first step that reads all of the stream: 0, or that of the last one, which reads anything."""
    try:
        steps = list(message_steps(stream, shape))
        if len(steps) > 1:
            for _ in ordered(lambda chunk: steps[0].read(chunk[1]) and None, stream.chunks(), threads()):
                pass
    except NeedsRows:
        return len(steps) - 1
    except DataError:  # told in round two
        pass
    return 0


def write_part(every: Sequence[Sequence[SourceFile]], part: int, rounds: Sequence[Path], folder: Path, config: Convert) -> None:
    """Round two: the rows of part `part` and their counts, into `folder`; `rounds` are the folders of round one, in order."""
    told: Facts = {"step": 0, "made": None}
    try:
        stream = stream_of(every[part], every, rounds)
        first = max(int((schema_of(folder).metadata or {})[STEP]) for folder in rounds)
        for number, step in enumerate(message_steps(stream, RowShape(config.fields, config.roles))):
            if number < first:
                continue
            try:
                told = {"step": number, "made": as_json(write(step, folder / MESSAGES, config, None))}
                break
            except NeedsRows:
                continue
    except DataError:  # which the join tells, when it converts everything again and comes to the row
        pass
    (folder / PART).write_text(json.dumps(told), encoding="utf-8")


def as_json(made: Made) -> Facts:
    used = None if made.used is None else sorted(made.used)
    return {field.name: getattr(made, field.name) for field in fields(made)} | {"used": used}


def stream_of(share: Sequence[SourceFile], every: Sequence[Sequence[SourceFile]], rounds: Sequence[Path]) -> Stream:
    """A part's rows in the columns of all parts."""
    if share[0].kind != "json":
        return TableReader(share, TableReader.of([file for one in every for file in one]).columns)
    columns: dict[str, pa.DataType] = {}
    for folder in rounds:
        join_columns(columns, ((column.name, column.type) for column in schema_of(folder)))
    return JsonReader(share, settled(columns), exact=True)


def schema_of(folder: Path) -> pa.Schema:
    """What round one found."""
    return pa.ipc.read_schema(pa.py_buffer((folder / COLUMNS).read_bytes()))


def join(
    every: Sequence[Sequence[SourceFile]], rounds: Sequence[Path], folders: Sequence[Path], target: Path, config: Convert
) -> Facts | None:
    """Write the rows of all parts to `target`. None where they do not go together; raises DataError where no row is left."""
    found = [json.loads((folder / PART).read_text(encoding="utf-8")) for folder in folders]
    if any(part["made"] is None for part in found) or len({part["step"] for part in found}) > 1:
        return None
    stream = stream_of(every[0], every, rounds)
    schema = list(message_steps(stream, RowShape(config.fields, config.roles)))[found[0]["step"]].schema
    with pq.ParquetWriter(target, schema, compression=codecs(schema)) as writer:
        for folder in folders:
            with pq.ParquetFile(folder / MESSAGES, pre_buffer=False) as file:
                for group in range(file.metadata.num_row_groups):
                    writer.write_table(file.read_row_group(group).cast(schema))
    return finish(together([part["made"] for part in found]), stream, target)


def together(parts: Sequence[dict[str, Any]]) -> Made:
    """The counts of all parts; a row's number counts those of the parts before it that are of the same file."""
    made = Made(used=None if parts[0]["used"] is None else set())
    for part in parts:
        for reason, (file, row, detail) in part["examples"].items():
            made.examples.setdefault(reason, Example(file, row + made.sizes[file], detail))
        made.rows += part["rows"]
        made.repaired += part["repaired"]
        for counter, counts in ((made.dropped, part["dropped"]), (made.notes, part["notes"]), (made.sizes, part["sizes"])):
            counter.update(Counter(counts))
        if made.used is not None:
            made.used |= set(part["used"])
    return made
