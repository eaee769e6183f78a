"""From chunks of JSON to Arrow tables of one schema: declared types where the columns are known, inferred ones elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json

from talaria.data import row_format as shape
from talaria.data.row_chunk import Chunk
from talaria.data.row_format import Bad

REFUSED = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, UnicodeDecodeError)


class NeedsCare(Exception):
    """The quick way does not hold for this file: it must be cut exactly and its types inferred."""


def parse_chunk(chunk: bytes, schema: pa.Schema, *, exact: bool, problem: shape.Problem = shape.problem) -> Chunk:
    """The rows of a chunk in the given schema, those of another shape set aside.

    Raises NeedsCare where the quick way does not take the chunk and the exact one might.
    """
    try:
        return Chunk.whole(read_block(chunk, schema))
    except REFUSED as error:
        if not exact:
            raise NeedsCare from error
    texts, rows, bad = sift(chunk, problem)
    size = len(rows) + len(bad)
    good: dict[int, str] = {}
    repaired = 0
    for row, text in zip(rows, texts, strict=True):
        reason = refusal(text, schema)
        if reason:
            text = mend(text)
            reason = refusal(text, schema)
            repaired += reason is None
        if reason:
            bad.append(Bad(row, shape.UNREADABLE, refusal(text, None) or reason))
        else:
            good[row] = text
    table = read_block("\n".join(good.values()).encode(), schema) if good else schema.empty_table()
    return Chunk(table, np.array(list(good), np.int64), size, sorted(bad), repaired)


def mend(text: str) -> str:
    """A row as Python reads it, which takes half a surrogate pair (left out here) and a key that comes twice (the last counts).

    So does the reference's reader.
    """
    return json.dumps(json.loads(text), ensure_ascii=False).encode(errors="ignore").decode()


def sift(chunk: bytes, problem: shape.Problem) -> tuple[list[str], list[int], list[Bad]]:
    """Row by row: the text of the well-shaped rows, their places, and what is wrong with the others.

    What is not JSON ends the chunk: the last bad row then has the reason INVALID.
    """
    texts: list[str] = []
    rows: list[int] = []
    bad: list[Bad] = []
    try:
        for at, (value, text) in enumerate(values_of(chunk)):
            wrong = problem(value)
            if wrong:
                bad.append(Bad(at, *wrong))
            else:
                texts.append(text)
                rows.append(at)
    except ValueError as error:
        detail = "not valid UTF-8" if isinstance(error, UnicodeError) else f"not valid JSON: {error}"
        bad.append(Bad(len(rows) + len(bad), shape.INVALID, detail))
    return texts, rows, bad


def values_of(chunk: bytes) -> Iterator[tuple[Any, str]]:
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


def read_block(chunk: bytes, schema: pa.Schema | None) -> pa.Table:
    """The table of a chunk. Raises one of REFUSED where a row does not fit."""
    if not chunk.isascii():
        chunk.decode()  # Arrow's reader does not look; what it lets pass would break later
    unexpected = "infer" if schema is None else "error"
    return pa_json.read_json(
        pa.BufferReader(chunk),
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(chunk) + 1),
        parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected),
    )


def refusal(text: str, schema: pa.Schema | None) -> str | None:
    """Why the reader does not take this row, or None."""
    try:
        read_block(text.encode(), schema)
    except REFUSED as error:
        return reason_of(error)
    return None


def reason_of(error: Exception) -> str:
    return str(error).removeprefix("JSON parse error: ").removesuffix(" in row 0").rstrip(".")
