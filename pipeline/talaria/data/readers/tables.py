"""Parquet and CSV files as chunks of whole columns, in one schema for all of them.

Parquet is read in batches of so many rows and so many bytes: rows may be of 300 bytes or of a megabyte, and a file says
nothing reliable of it beforehand (a dictionary makes gigabytes of text of a file of 300 kB).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from talaria.common.errors import DataError
from talaria.data import json_text
from talaria.data.readers import column_types
from talaria.data.readers.row_chunk import RowValues
from talaria.data.source_files import SourceFile

ROWS, BYTES = 8192, 64 << 20
"""Of a chunk, at most."""
PROBE = 64
"""Rows of a file that are read first, to see how long rows are."""
REFUSED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, OSError)


@dataclass(frozen=True)
class TableBatch:
    file: str
    table: pa.Table


@dataclass(frozen=True)
class TableReader:
    """Files that hold columns."""

    files: Sequence[SourceFile]
    columns: Mapping[str, pa.DataType]
    has_rows = True

    @classmethod
    def of(cls, files: Sequence[SourceFile]) -> TableReader:
        """Raises DataError where a file cannot be read, or has two columns of one name."""
        columns: dict[str, pa.DataType] = {}
        for file in files:
            schema = _schema(file)
            repeated = [name for name in schema.names if schema.names.count(name) > 1]
            if repeated:
                raise DataError(f"{file.name}: has two columns named {repeated[0]!r}; rename or drop one.")
            column_types.join_columns(columns, ((column.name, _usual(column.type)) for column in schema))
        return cls(files, {name: column_types.storable(kind) for name, kind in columns.items()})

    @property
    def name(self) -> str:
        return self.files[0].name

    def chunks(self) -> Iterator[tuple[str, TableBatch]]:
        for file in self.files:
            for table in _csv_tables(file) if file.kind == "csv" else _parquet_tables(file):
                yield file.name, TableBatch(file.name, table)

    def table(self, raw: TableBatch) -> pa.Table:
        arrays = []
        for name, kind in self.columns.items():
            values = raw.table.column(name).combine_chunks() if name in raw.table.column_names else None
            try:
                arrays.append(_as(values, kind, len(raw.table)))
            except REFUSED as error:
                raise DataError(f"{raw.file}: column {name}: {error}.") from None
        return pa.Table.from_arrays(arrays, schema=column_types.written(self.columns))

    def only(self, raw: TableBatch, rows: list[int], size: int) -> TableBatch:
        return TableBatch(raw.file, raw.table.take(pa.array(rows, pa.int64())))

    def rows(self, raw: TableBatch, columns: Iterable[str]) -> RowValues:
        there = [name for name in columns if name in raw.table.column_names]
        values = {name: _values(raw.table.column(name)) for name in there}
        rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return RowValues(
            rows or [{} for _ in range(len(raw.table))], lambda kept: self.table(raw).take(pa.array(kept, pa.int64()))
        )


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values, JSON ones decoded. An absent field of an object is null in a struct of several objects, and left out."""
    decode = _decoder(column.type)
    return [decode(value) for value in column.to_pylist()]


def _decoder(kind: pa.DataType) -> Callable[[Any], Any]:
    if isinstance(kind, pa.JsonType):
        return _from_json
    if _is_list(kind):
        inner = _decoder(kind.value_type)
        return lambda value: None if value is None else [inner(item) for item in value]
    if pa.types.is_struct(kind):
        fields = {field.name: _decoder(field.type) for field in kind}
        return lambda value: (
            None if value is None else {name: fields[name](item) for name, item in value.items() if item is not None}
        )
    return lambda value: value


def _from_json(text: str | None) -> Any:
    try:
        return None if text is None else json_text.parse(text)
    except ValueError:
        return text


@contextmanager
def _told(file: SourceFile, row: int | None = None) -> Iterator[None]:
    """A reader's error as one sentence with the file, and the row that it was at."""
    try:
        yield
    except REFUSED as error:
        reason = " ".join(str(error).split()).rstrip(".")
        where = "" if row is None else f", after row {row}"
        raise DataError(f"{file.name}: not a {file.kind} file that can be read{where} ({reason}).") from None


def _schema(file: SourceFile) -> pa.Schema:
    if file.kind == "csv":
        with file.open() as stream, _told(file):
            return _open_csv(stream).schema
    with _told(file):
        return _open_parquet(file).schema_arrow


def _open_parquet(file: SourceFile) -> pq.ParquetFile:
    try:
        if file.packing:
            with file.open() as stream:
                return pq.ParquetFile(pa.BufferReader(stream.read()))
        return pq.ParquetFile(file.path, pre_buffer=False)  # it would hold whole row groups
    except pa.ArrowNotImplementedError:
        return _open_with_polars(file)


def _open_with_polars(file: SourceFile) -> pq.ParquetFile:
    """A file with whole numbers of 128 bits, which polars writes and Arrow does not know, in memory and with those as text."""
    import polars as pl
    import polars.selectors as cs

    made = io.BytesIO()
    with file.open() as stream:
        try:
            pl.scan_parquet(stream.read()).with_columns(cs.by_dtype(pl.Int128, pl.UInt128).cast(pl.String)).sink_parquet(made)
        except pl.exceptions.PolarsError as error:
            raise pa.ArrowInvalid(str(error)) from None
    return pq.ParquetFile(pa.BufferReader(made.getvalue()))


def _parquet_tables(file: SourceFile) -> Iterator[pa.Table]:
    with _told(file):
        opened = _open_parquet(file)
        rows = min(ROWS, max(1, BYTES // (_bytes_a_row(opened) + 1)))
    done = 0
    while done < opened.metadata.num_rows:
        with _told(file, done):
            try:
                for batch in _batches(opened, rows, done):
                    yield pa.Table.from_batches([batch])
                    done += len(batch)
                    if batch.nbytes > 4 * BYTES:
                        break
            except pa.ArrowNotImplementedError:  # more than 2 GiB of text in a batch
                if rows == 1:
                    raise
        rows = max(1, rows // 8)


def _bytes_a_row(opened: pq.ParquetFile) -> int:
    batch = next(opened.iter_batches(PROBE), None)
    return 0 if batch is None else int(batch.nbytes // max(1, len(batch)))


def _batches(opened: pq.ParquetFile, rows: int, skip: int) -> Iterator[pa.RecordBatch]:
    """Batches of so many rows of the file, without its first `skip` rows."""
    groups = list(range(opened.metadata.num_row_groups))
    while skip and skip >= opened.metadata.row_group(groups[0]).num_rows:
        skip -= opened.metadata.row_group(groups.pop(0)).num_rows
    for batch in opened.iter_batches(rows, row_groups=groups):
        if skip < len(batch):
            yield batch.slice(skip)
        skip = max(0, skip - len(batch))


def _open_csv(stream: Any) -> pa_csv.CSVStreamingReader:
    """All columns as text: a number with leading zeros, a date or the word 'null' stays what it is."""
    return pa_csv.open_csv(
        stream,
        read_options=pa_csv.ReadOptions(block_size=8 << 20),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(default_column_type=pa.string(), strings_can_be_null=False),
    )


def _csv_tables(file: SourceFile) -> Iterator[pa.Table]:
    done = 0
    with file.open() as stream:
        with _told(file):
            reader = _open_csv(stream)
        while True:
            with _told(file, done):
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    return
            done += len(batch)
            yield pa.Table.from_batches([batch])


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType | pa.ListViewType | pa.LargeListViewType)


def _usual(kind: pa.DataType) -> pa.DataType:
    """The type in its usual encoding: plain strings and lists."""
    if isinstance(kind, pa.JsonType):
        return column_types.JSON
    if isinstance(kind, pa.BaseExtensionType):
        return _usual(kind.storage_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return _usual(kind.value_type)
    if _is_list(kind):
        return pa.list_(_usual(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(inner.name, _usual(inner.type)) for inner in kind])
    return kind


def _as(values: pa.Array | None, kind: pa.DataType, size: int) -> pa.Array:
    """A column of this type as it is written."""
    if values is not None and isinstance(values.type, pa.JsonType):
        return values.storage.cast(pa.string())
    if values is not None and kind == column_types.JSON:
        return column_types.to_column(values.to_pylist(), kind)
    written = column_types.written({"": kind}).field(0).type
    if values is None:
        return pa.nulls(size, written)
    if _has_view(values.type):  # Arrow's cast from a list view gives offsets that fall (25.0), and the writer then hangs
        return pa.array(values.to_pylist(), written)
    return values if values.type == written else values.cast(written)


def _has_view(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.ListViewType | pa.LargeListViewType):
        return True
    if _is_list(kind):
        return _has_view(kind.value_type)
    return pa.types.is_struct(kind) and any(_has_view(field.type) for field in kind)
