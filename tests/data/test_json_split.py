"""Cutting JSON files into rows: every way gives the rows that a JSON parser sees, wherever the blocks end."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talaria.common.errors import DataError
from talaria.data.readers.json_parse import values_of
from talaria.data.readers.json_split import ROWS, JsonLayout, read_arrays, read_chunks

# Text that looks like what the cutter looks for.
SNARES = st.sampled_from(['"', "\\", '\\"', "}", "]", "},\n    {", "\n    },\n", "\n]", "{", "[", '\\\\"', ",", "\u2028", "é😀"])
TEXTS = st.lists(SNARES | st.text(max_size=3), max_size=6).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXTS, VALUES, max_size=3), max_size=6)


def cut(data: bytes, *, exact: bool, size: int) -> list[Any]:
    stream = io.BytesIO(data)
    layout = JsonLayout.of(stream, "rows.json", size)
    if exact or not layout.separator:
        return [value for chunk in read_chunks(stream, layout) for value, _ in values_of(chunk)]
    return [row for chunk in read_arrays(stream, layout) for row in json.loads(bytes(chunk))[ROWS]]


@given(rows=OBJECTS, indent=st.sampled_from([None, 0, 1, 2, 4, "\t"]), ascii=st.booleans(), size=st.integers(1, 400))
@settings(max_examples=150, derandomize=True)
def test_any_array_is_cut_into_its_rows(rows: list[Any], indent: Any, ascii: bool, size: int) -> None:
    data = json.dumps(rows, indent=indent, ensure_ascii=ascii).encode()
    assert cut(data, exact=True, size=size) == rows


@given(
    rows=OBJECTS.filter(lambda rows: rows and all(rows)),  # an empty row has no indentation to go by
    indent=st.sampled_from([1, 2, 4, "\t"]),
    size=st.integers(20, 400),
    end=st.sampled_from(["", "\n"]),
)
@settings(max_examples=150, derandomize=True)
def test_a_pretty_printed_array_is_cut_by_its_indentation(rows: list[Any], indent: Any, size: int, end: str) -> None:
    data = (json.dumps(rows, indent=indent) + end).encode()
    assert cut(data, exact=False, size=size) == rows


@given(rows=OBJECTS.filter(lambda rows: rows and rows[0]), cut_at=st.data(), size=st.integers(20, 400))
@settings(max_examples=150, derandomize=True)
def test_where_indentation_lies_the_quick_way_fails_and_never_gives_other_rows(rows: list[Any], cut_at: Any, size: int) -> None:
    lines = json.dumps(rows, indent=2).split("\n")
    first = cut_at.draw(st.integers(3, len(lines)))
    data = "\n".join(lines[:first] + ["  " + line.lstrip() for line in lines[first:]]).encode()
    try:
        found = cut(data, exact=False, size=size)
    except (DataError, ValueError):
        found = rows
    assert found == rows


@given(rows=OBJECTS.filter(bool), indent=st.sampled_from([None, 2]), size=st.integers(1, 200))
@settings(max_examples=150, derandomize=True)
def test_objects_one_after_the_other_are_cut_too(rows: list[Any], indent: Any, size: int) -> None:
    data = "\n".join(json.dumps(row, indent=indent) for row in rows).encode()
    assert cut(data, exact=False, size=size) == rows


@given(rows=OBJECTS.filter(bool), size=st.integers(1, 100), missing=st.integers(1, 30))
@settings(max_examples=150, derandomize=True)
def test_a_truncated_array_is_never_taken_for_a_whole_one(rows: list[Any], size: int, missing: int) -> None:
    data = json.dumps(rows, indent=4).encode()[: -min(missing, 5)]
    with pytest.raises((DataError, ValueError)):
        cut(data, exact=True, size=size)


def test_rows_that_are_no_objects_are_passed_on() -> None:
    data = b'[null, 1, {"a": 1}, null, {"b": 2}, [3], 4]'
    assert cut(data, exact=True, size=7) == [None, 1, {"a": 1}, None, {"b": 2}, [3], 4]
    assert cut(b"[]", exact=True, size=7) == []


@pytest.mark.parametrize("data", ["[{} {}]", "[{},,{}]", "[,{}]", "[{},]", "[{}] {}", "[{}]]"])
def test_commas_and_brackets_that_do_not_match_are_told(data: str) -> None:
    with pytest.raises(DataError, match=r"rows\.json: .* byte \d+"):
        cut(data.encode(), exact=True, size=3)


@pytest.mark.parametrize("data", ["hello", '"text"', "\x89PNG"])
def test_what_is_no_array_and_no_object_is_refused(data: str) -> None:
    with pytest.raises(DataError, match=r"rows\.json: begins with.*expected a JSON array"):
        cut(data.encode("latin-1"), exact=True, size=100)


def test_a_byte_order_mark_is_skipped() -> None:
    assert cut(b'\xef\xbb\xbf[{"a": 1}]', exact=True, size=100) == [{"a": 1}]
