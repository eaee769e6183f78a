"""The type of a column whose values are of several: what all of them fit, or JSON text.

Types join in any order to the same result, so a column's type does not depend on how a file is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from talaria.data import json_text

JSON = pa.json_(pa.string())
"""Marks a column that is written as JSON text, a value each: values of several types, whole numbers beyond 64 bits, objects
without a field (which parquet has no place for). `datasets` reads such columns so too."""
_INT64 = range(-(2**63), 2**63)


class Conflict(Exception):
    """Two types that only JSON text can hold together."""


def join(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """Return the type that holds the values of both, or JSON if there is none."""
    try:
        return _join(first, second)
    except Conflict:
        return JSON


def join_columns(columns: dict[str, pa.DataType], further: Iterable[tuple[str, pa.DataType]]) -> None:
    """Join further columns into `columns`, new ones at the end."""
    for name, kind in further:
        columns[name] = join(columns[name], kind) if name in columns else kind


def _join(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    if first.equals(second) or pa.types.is_null(second):
        return first
    if pa.types.is_null(first):
        return second
    if _is_number(first) and _is_number(second):
        return _number(first, second)
    if pa.types.is_list(first) and pa.types.is_list(second):
        return pa.list_(_join(first.value_type, second.value_type))
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        fields = {inner.name: inner.type for inner in first}
        for inner in second:
            fields[inner.name] = _join(fields[inner.name], inner.type) if inner.name in fields else inner.type
        return pa.struct(list(fields.items()))
    raise Conflict


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _number(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    try:
        schemas = [pa.schema([("n", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):  # uint64 with a signed type
        raise Conflict from None


def of_value(value: Any) -> pa.DataType:
    """Return the type of a JSON value, as Arrow's JSON reader infers it. Raises Conflict if only JSON text can hold it."""
    if value is None:
        return pa.null()
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        if value not in _INT64:
            raise Conflict
        return pa.int64()
    if isinstance(value, float):
        return pa.float64()
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, list):
        kind = pa.null()
        for item in value:
            kind = _join(kind, of_value(item))
        return pa.list_(kind)
    return pa.struct([(name, of_value(item)) for name, item in value.items()])


def of_rows(rows: Iterable[dict[str, Any]]) -> dict[str, pa.DataType]:
    """Return the columns of these rows in order of appearance."""
    columns: dict[str, pa.DataType] = {}
    for row in rows:
        for name, value in row.items():
            try:
                kind = of_value(value)
            except Conflict:
                kind = JSON
            columns[name] = join(columns.get(name, pa.null()), kind)
    return columns


def storable(kind: pa.DataType) -> pa.DataType:
    """Return the type, or JSON if parquet cannot hold it: a struct without a field, anywhere in it.

    A struct's field without a value is text: Arrow loses count of the rows of one that has no type.
    """
    return JSON if _has_empty_struct(kind) else _replaced(kind, pa.null(), pa.string())


def _replaced(kind: pa.DataType, old: pa.DataType, new: pa.DataType, inside: bool = False) -> pa.DataType:
    """The type with `new` for `old` in the fields of its structs; at the top too where `inside`."""
    if pa.types.is_list(kind):
        return pa.list_(_replaced(kind.value_type, old, new, inside))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _replaced(field.type, old, new, True)) for field in kind])
    return new if inside and kind == old else kind


def _has_empty_struct(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_empty_struct(kind.value_type)
    return pa.types.is_struct(kind) and (not kind.num_fields or any(_has_empty_struct(inner.type) for inner in kind))


def written(columns: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema in which these columns are written: JSON as plain text."""
    return pa.schema([(name, _replaced(kind, JSON, pa.string(), True)) for name, kind in columns.items()])


def to_column(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Build a column of this type from Python values; null where a value is absent."""
    if kind == JSON:
        return pa.array([None if value is None else json_text.dump(value) for value in values], pa.string())
    if pa.types.is_floating(kind):  # Arrow refuses a whole number that a float cannot hold to the last digit
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, kind)
