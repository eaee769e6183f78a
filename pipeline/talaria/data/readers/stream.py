"""Data files as streams of chunks in one schema, whatever they are: as whole columns where that does, else row by row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from talaria.data.conversation.row_shape import RowShape
from talaria.data.readers import column_types
from talaria.data.readers.json_parse import NeedsRows, read_array, read_table, rows_of
from talaria.data.readers.json_schema import infer_files, schema_to_read
from talaria.data.readers.json_split import JsonLayout, read_arrays, read_chunks
from talaria.data.readers.row_chunk import RowValues
from talaria.data.readers.tables import TableReader
from talaria.data.source_files import SourceFile


class Stream(Protocol):
    """A source's chunks in order, and two ways to read one."""

    @property
    def name(self) -> str: ...

    @property
    def columns(self) -> Mapping[str, pa.DataType]:
        """In order; JSON marks a column that is written as JSON text."""

    @property
    def has_rows(self) -> bool:
        """Whether `rows` can be used; without it, the next stream reads what `table` does not."""

    def chunks(self) -> Iterator[tuple[str, Any]]:
        """(file's name, what `table` and `rows` take), from the beginning."""

    def table(self, raw: Any) -> pa.Table:
        """The chunk's columns. Raises NeedsRows where they cannot be had without looking at each row."""

    def rows(self, raw: Any, columns: Iterable[str]) -> RowValues:
        """The chunk's rows as Python values, which hold at least these columns where the row has them."""

    def only(self, raw: Any, rows: list[int], size: int) -> Any:
        """A chunk of these rows alone of a chunk of `size` rows; None where they cannot be told from the others."""


def streams(files: Sequence[SourceFile], threads: int, shape: RowShape | None, *, to_the_end: bool) -> Iterator[Stream]:
    """Streams of the files, the quick one first. Each has the columns of all rows, also those after the end of what is read."""
    if files[0].kind != "json":
        yield TableReader.of(files)
        return
    if (schema := schema_to_read(files, to_the_end=to_the_end)) is not None:
        yield JsonReader(files, {field.name: field.type for field in schema}, exact=False)
    yield JsonReader(files, infer_files(files, threads, shape), exact=True)


@dataclass(frozen=True)
class JsonReader:
    """JSON arrays and JSON Lines."""

    files: Sequence[SourceFile]
    columns: Mapping[str, pa.DataType]
    exact: bool
    """Without it, pretty-printed arrays are read the quick way."""

    @property
    def name(self) -> str:
        return self.files[0].name

    @property
    def has_rows(self) -> bool:
        return self.exact

    def chunks(self) -> Iterator[tuple[str, Any]]:
        read = read_chunks if self.exact else read_arrays
        for file in self.files:
            with file.open() as stream:
                for chunk in read(stream, JsonLayout.of(stream, file.name, ends_inside=file.ends_inside)):
                    yield file.name, chunk

    def table(self, raw: Any) -> pa.Table:
        if column_types.JSON in self.columns.values():
            raise NeedsRows
        schema = pa.schema(list(self.columns.items()))
        return read_table(raw, schema) if self.exact else read_array(raw, schema)

    def rows(self, raw: bytes, columns: Iterable[str]) -> RowValues:
        found = rows_of(raw)

        def table(kept: list[int]) -> pa.Table:
            rows = [found.values[row] for row in kept]
            arrays = [column_types.to_column([row.get(name) for row in rows], kind) for name, kind in self.columns.items()]
            return pa.Table.from_arrays(arrays, schema=column_types.written(self.columns))

        return RowValues(found.values, table, found.invalid, found.repaired)

    def only(self, raw: bytes, rows: list[int], size: int) -> bytes | None:
        lines = [line for line in raw.split(b"\n") if line.strip()]
        return b"\n".join(lines[row] for row in rows) + b"\n" if len(lines) == size else None
