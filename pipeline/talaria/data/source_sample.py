"""The beginning of each file of a source, as files of their own: what a first look reads in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq

from talaria.data.readers.column_types import written
from talaria.data.readers.json_split import JsonLayout, read_chunks
from talaria.data.readers.tables import TableReader
from talaria.data.source_files import SourceFile

BYTES, ROWS, FILES = 1 << 20, 1000, 64
"""Of a file, at most (JSON by bytes, columns by rows); of a source."""


def sample_files(files: Sequence[SourceFile], folder: Path) -> list[SourceFile]:
    """Write whole rows from the beginning of each of the files, evenly chosen where they are many, into `folder`.

    The samples are called as the files are, so that a sentence about one names the file, and its rows count from 0 as there.
    Raises DataError where a file cannot be read.
    """
    chosen = [files[number * len(files) // FILES] for number in range(FILES)] if len(files) > FILES else list(files)
    if files[0].kind != "json":
        TableReader.of(files)  # the columns of all files must go together
    return [_sample(file, folder / f"{number:03d}") for number, file in enumerate(chosen)]


def _sample(file: SourceFile, target: Path) -> SourceFile:
    if file.kind == "json":
        with file.open() as stream:
            layout = JsonLayout.of(stream, file.name, BYTES)
            chunks = islice(read_chunks(stream, layout), 2)  # the last row of a short file is a chunk of its own
            target.write_bytes(b"".join(chunks))
        return SourceFile(target, file.name, "json")
    reader = TableReader.of([file])
    first = next((batch.table for _, batch in reader.chunks()), None)
    pq.write_table(written(reader.columns).empty_table() if first is None else first.slice(0, ROWS), target)
    return SourceFile(target, file.name, "parquet")
