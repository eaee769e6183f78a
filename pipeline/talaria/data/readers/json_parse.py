"""Chunks of JSON as Arrow tables of one schema, or as Python values row by row where Arrow's reader does not take them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from talaria.common.arrow import one_value
from talaria.data.conversation.drop_reasons import INVALID, Bad
from talaria.data.readers.json_split import ROWS

REFUSED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnicodeDecodeError)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NeedsRows(Exception):
    """Whole columns cannot be read from this chunk: its rows must be read one by one."""


@dataclass(frozen=True)
class ParsedRows:
    """The values of a chunk, row by row. Invalid JSON ends it: `invalid` is then the last row."""

    values: list[Any] = field(default_factory=list)
    invalid: Bad | None = None
    repaired: int = 0
    """Rows whose broken text was mended (half a surrogate pair left out)."""


def read_table(chunk: bytes, schema: pa.Schema) -> pa.Table:
    """Read the rows of a chunk in the given schema. Raises NeedsRows if Arrow's reader refuses one."""
    try:
        return read_block(chunk, schema)
    except REFUSED as error:
        raise NeedsRows from error


def read_array(chunk: memoryview, schema: pa.Schema) -> pa.Table:
    """Read the rows of a chunk {"rows": [...]} in the given schema. Raises NeedsRows if Arrow's reader refuses one."""
    try:  # Arrow's reader does not look whether text is UTF-8; what it lets pass would break later
        one_value(chunk, pa.large_string()).validate(full=True)
        table = _read(chunk, pa.schema([(ROWS, pa.list_(pa.struct(list(schema))))]))
    except REFUSED as error:
        raise NeedsRows from error
    rows = table.column(ROWS).combine_chunks().flatten()
    if len(table) != 1 or not len(rows) or rows.null_count:  # more than an array; a comma behind the last row; null for a row
        raise NeedsRows
    return pa.Table.from_arrays([rows.field(number) for number in range(len(schema))], schema=schema)


def read_block(chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    """Read a chunk as a table with inferred types. Raises one of REFUSED if a row does not fit."""
    if not chunk.isascii():
        chunk.decode()  # as in read_array
    return _read(chunk, schema)


def _read(chunk: bytes | memoryview, schema: pa.Schema | None) -> pa.Table:
    unexpected = "infer" if schema is None else "error"
    return pa_json.read_json(
        pa.BufferReader(chunk),
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )


def rows_of(chunk: bytes) -> ParsedRows:
    """Parse each value of a chunk with Python's reader: of duplicate keys the last value counts, as in the reference."""
    values: list[Any] = []
    repaired = 0
    try:
        for value, text in values_of(chunk):
            if _SURROGATE.search(text):
                whole = _without_surrogates(value)
                repaired += whole != value
                value = whole
            values.append(value)
    except ValueError as error:
        detail = "not valid UTF-8" if isinstance(error, UnicodeError) else f"not valid JSON: {error}"
        return ParsedRows(values, Bad(len(values), INVALID, detail), repaired)
    return ParsedRows(values, None, repaired)


def _without_surrogates(value: Any) -> Any:
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="ignore"))


def values_of(chunk: bytes) -> Iterator[tuple[Any, str]]:
    """Yield each JSON value of a chunk with its text. Raises ValueError at the first that is invalid."""
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
