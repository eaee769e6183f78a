"""From chunks of JSON to Arrow tables of one schema: declared types where the columns are known, inferred ones elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json

from pipeline.data import shape
from pipeline.data.chunk import Chunk
from pipeline.data.rows import Layout, read_blocks, read_chunks
from pipeline.data.shape import Bad
from pipeline.data.sources import SourceFile
from pipeline.errors import DataError

_TURN = {"from": pa.string(), "value": pa.string()}
_TURNS = pa.list_(pa.struct(list(_TURN.items())))
_WEIGHTED_TURNS = pa.list_(pa.struct([*_TURN.items(), ("weight", pa.float64())]))
_STRINGS = ["topic", "model_name", "model", "category", "language", "id", "title", "idx", "avatarUrl", "system_prompt", "source"]
# The hub's types of OpenHermes-2.5. Declared, since its rows are sparse: a reader that infers from the first rows
# takes a column that comes later, or a turn's weight that comes and goes, for something else.
DECLARED: dict[str, pa.DataType] = {
    "conversations": _WEIGHTED_TURNS,
    "custom_instruction": pa.bool_(),
    "skip_prompt_formatting": pa.bool_(),
    "views": pa.int64(),
    "hash": pa.list_(pa.int64()),
    **dict.fromkeys(_STRINGS, pa.string()),
}
_REFUSED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)


class NeedsCare(Exception):
    """The quick way does not hold for this file: it must be cut exactly and its types inferred."""


def quick_schema(files: Iterable[SourceFile]) -> pa.Schema | None:
    """The columns in order of appearance with their declared types, or None where a file needs care.

    Quick means pretty-printed arrays whose columns are all declared: their names stand at one indentation.
    """
    names: dict[str, None] = {}
    weighted = False
    for file in files:
        with file.open() as stream:
            layout = Layout.of(stream, file.name)
            if layout.key is None:
                return None
            for block in read_blocks(stream, layout):
                names.update(dict.fromkeys(key.decode(errors="replace") for key in dict.fromkeys(layout.key.findall(block))))
                if not names.keys() <= DECLARED.keys():
                    return None
                weighted = weighted or b'"weight":' in block
    types = {name: DECLARED[name] for name in names}
    if "conversations" in types and not weighted:
        types["conversations"] = _TURNS
    return pa.schema(list(types.items()))


@dataclass
class Inferred:
    schema: pa.Schema
    size: int
    conflict: Bad | None = None


def infer_chunk(chunk: bytes, problem: shape.Problem = shape.problem) -> Inferred:
    """The columns of a chunk as the reader sees them, without the rows that could not be converted anyway."""
    try:
        table = _read(chunk, None)
        return Inferred(table.schema, len(table))
    except _REFUSED:
        texts, rows, bad = sift(chunk, problem)
    size = len(rows) + len(bad)
    readable = [text for text in texts if _refusal(text, None) is None]
    try:
        return Inferred(_read("\n".join(readable).encode(), None).schema if readable else pa.schema([]), size)
    except _REFUSED as error:
        return Inferred(pa.schema([]), size, Bad(0, shape.UNREADABLE, _reason(error)))


def merge_schemas(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """One schema that holds them all, columns in order of appearance; a column never filled gets its declared type.

    Raises pa.ArrowTypeError where a column has types that do not go together.
    """
    merged = pa.schema([])
    for schema in schemas:
        plain = pa.schema([(column.name, _plain(column.type)) for column in schema])
        merged = pa.unify_schemas([merged, plain], promote_options="permissive")
    return pa.schema([(c.name, DECLARED.get(c.name, c.type) if pa.types.is_null(c.type) else c.type) for c in merged])


def parse_chunk(chunk: bytes, schema: pa.Schema, *, exact: bool, problem: shape.Problem = shape.problem) -> Chunk:
    """The rows of a chunk in the given schema, those of another shape set aside.

    Raises NeedsCare where the quick way does not take the chunk and the exact one might.
    """
    try:
        if not chunk.isascii():
            chunk.decode()  # the reader does not look; what it lets pass would break later
        return Chunk.whole(_read(chunk, schema))
    except UnicodeDecodeError:
        pass
    except _REFUSED as error:
        if not exact:
            raise NeedsCare from error
    texts, rows, bad = sift(chunk, problem)
    refused = {row: reason for row, text in zip(rows, texts, strict=True) if (reason := _refusal(text, schema))}
    good = {row: text for row, text in zip(rows, texts, strict=True) if row not in refused}
    table = _read("\n".join(good.values()).encode(), schema) if good else schema.empty_table()
    bad += [Bad(row, shape.UNREADABLE, reason) for row, reason in refused.items()]
    return Chunk(table, np.array(list(good), np.int64), len(rows) + len(bad) - len(refused), sorted(bad))


def sift(chunk: bytes, problem: shape.Problem) -> tuple[list[str], list[int], list[Bad]]:
    """Row by row: the text of the well-shaped rows, their places, and what is wrong with the others.

    What is not JSON ends the chunk: the last bad row then has the reason INVALID.
    """
    texts: list[str] = []
    rows: list[int] = []
    bad: list[Bad] = []
    try:
        for at, (value, text) in enumerate(_values(chunk)):
            wrong = problem(value)
            if wrong:
                bad.append(Bad(at, *wrong))
            else:
                texts.append(text)
                rows.append(at)
    except ValueError as error:
        detail = "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"
        bad.append(Bad(len(rows) + len(bad), shape.INVALID, detail))
    return texts, rows, bad


def _values(chunk: bytes) -> Iterator[tuple[Any, str]]:
    """Each JSON value of a chunk, with its text. Raises ValueError at the first that is none."""
    text = chunk.decode(errors="surrogateescape")
    decoder = json.JSONDecoder()
    at = 0
    while True:
        while text[at : at + 1].isspace():
            at += 1
        if at == len(text):
            return
        value, end = decoder.raw_decode(text, at)
        text[at:end].encode()  # raises where a byte was no UTF-8
        yield value, text[at:end]
        at = end


def _read(chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    unexpected = "infer" if schema is None else "error"
    return pa_json.read_json(
        pa.BufferReader(chunk),
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )


def _refusal(text: str, schema: pa.Schema | None) -> str | None:
    """Why the reader does not take this row, or None."""
    try:
        _read(text.encode(), schema)
    except _REFUSED as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return str(error).removeprefix("JSON parse error: ").removesuffix(" in row 0").rstrip(".")


def _plain(kind: pa.DataType) -> pa.DataType:
    """Text stays text: the reader takes a column of ISO dates for timestamps."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(inner.name, _plain(inner.type)) for inner in kind])
    return kind


def infer_files(files: Sequence[SourceFile], threads: int, problem: shape.Problem = shape.problem) -> pa.Schema:
    """The schema of all rows of all files, by reading them all once."""
    from pipeline.tokens.chunks import ordered

    schema = pa.schema([])
    for file in files:
        with file.open() as stream:
            row = 0
            for found in ordered(
                partial(infer_chunk, problem=problem), read_chunks(stream, Layout.of(stream, file.name), exact=True), threads
            ):
                if found.conflict:
                    raise DataError(f"{file.name}: rows from {row} on: {found.conflict.detail}; a column must have one type.")
                try:
                    schema = merge_schemas([schema, found.schema])
                except pa.ArrowTypeError as error:
                    raise DataError(f"{file.name}: rows from {row} on: {error}; a column must have one type.") from None
                row += found.size
    return schema
