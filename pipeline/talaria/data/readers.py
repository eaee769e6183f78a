"""Data files as streams of chunks in one schema, whatever they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from talaria.common.errors import DataError
from talaria.data.json_parse import parse_chunk
from talaria.data.json_schema import DECLARED, infer_files, quick_schema
from talaria.data.json_split import Layout, read_chunks
from talaria.data.row_chunk import Chunk
from talaria.data.row_format import Problem
from talaria.data.source_files import SourceFile

BATCH = 8192
"""Rows of a parquet source that are converted together."""


@dataclass(frozen=True)
class Stream:
    """Chunks of a source in order, and how one becomes a table of `schema`."""

    name: str
    schema: pa.Schema
    chunks: Iterator[tuple[str, Any]]
    """(file's name, what `read` takes)."""
    read: Callable[[Any], Chunk]


def streams(files: Sequence[SourceFile], threads: int, problem: Problem) -> Iterator[Stream]:
    """Ways to read the files, the quick one first; where reading it raises NeedsCare, the next one holds.

    `problem` tells which JSON rows are set aside.
    """
    if files[0].is_parquet:
        yield _parquet(files)
        return
    schema = quick_schema(files)
    if schema is not None:
        yield _json(files, schema, problem, exact=False)
    yield _json(files, infer_files(files, threads, problem), problem, exact=True)


def _json(files: Sequence[SourceFile], schema: pa.Schema, problem: Problem, *, exact: bool) -> Stream:
    def chunks() -> Iterator[tuple[str, bytes]]:
        for file in files:
            with file.open() as stream:
                for chunk in read_chunks(stream, Layout.of(stream, file.name), exact=exact):
                    yield file.name, chunk

    return Stream(files[0].name, schema, chunks(), partial(parse_chunk, schema=schema, exact=exact, problem=problem))


def _parquet(files: Sequence[SourceFile]) -> Stream:
    """Parquet files as one, in the schema that holds them all."""
    opened = [(file.name, _open(file)) for file in files]
    schema = pa.schema([])
    for name, file in opened:
        found = pa.schema([(column.name, _usual(column.type, column.name)) for column in file.schema_arrow])
        try:
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except pa.ArrowTypeError as error:
            raise DataError(f"{name}: a column's type differs from that in the files before it: {error}.") from None

    def chunks() -> Iterator[tuple[str, tuple[str, pa.RecordBatch]]]:
        for name, file in opened:
            for batch in file.iter_batches(BATCH):
                yield name, (name, batch)

    def read(item: tuple[str, pa.RecordBatch]) -> Chunk:
        name, batch = item
        there = {field.name: values for field, values in zip(batch.schema, batch.columns, strict=True)}
        columns = []
        for column in schema:
            values = there.get(column.name)
            try:
                columns.append(pa.nulls(len(batch), column.type) if values is None else _as(values, column.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(f"{name}: column {column.name}: {error}.") from None
        return Chunk.whole(pa.Table.from_arrays(columns, schema=schema))

    return Stream(files[0].name, schema, chunks(), read)


def _open(file: SourceFile) -> pq.ParquetFile:
    try:
        if file.compressed:
            with file.open() as stream:
                return pq.ParquetFile(pa.BufferReader(stream.read()))
        return pq.ParquetFile(file.path, pre_buffer=False)  # it would hold whole row groups
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file.name}: not a parquet file that can be read ({error}).") from None


def _usual(kind: pa.DataType, name: str = "") -> pa.DataType:
    """The type in its usual encoding: plain strings and lists, and turns that `datasets` stored as JSON text as structs."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_dictionary(kind):
        return _usual(kind.value_type)
    if isinstance(kind, pa.JsonType):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return (
            DECLARED[name]
            if name == "conversations" and isinstance(kind.value_type, pa.JsonType)
            else pa.list_(_usual(kind.value_type))
        )
    if pa.types.is_struct(kind):
        return pa.struct([(inner.name, _usual(inner.type)) for inner in kind])
    return kind


def _as(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if values.type == kind:
        return values
    if pa.types.is_list(values.type) and isinstance(values.type.value_type, pa.JsonType) and pa.types.is_struct(kind.value_type):
        items = pa.array(map(json.loads, values.flatten().storage.to_pylist()), kind.value_type)
        lengths = pc.fill_null(pc.list_value_length(values), 0)
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
        return pa.ListArray.from_arrays(offsets, items, mask=values.is_null())
    return values.cast(kind)
