"""Between numpy and Arrow without pandas."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from talaria.common.arrow import scalar, to_arrow, to_numpy

BOOLS = np.array([True, False, False, True, True, False, True, False, True, True])


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint32, np.float64])
@pytest.mark.parametrize("length", [0, 1, 1000])
def test_numbers_go_there_and_back(dtype: type, length: int) -> None:
    values = np.arange(length, dtype=dtype)[::-1]  # not contiguous
    column = to_arrow(values)
    column.validate(full=True)
    assert column.equals(pa.array(values))
    assert to_numpy(column).dtype == dtype
    assert to_numpy(column).tolist() == values.tolist()


@pytest.mark.parametrize("length", range(len(BOOLS) + 1))
def test_booleans_go_there_and_back(length: int) -> None:
    column = to_arrow(BOOLS[:length])
    column.validate(full=True)
    assert column.equals(pa.array(BOOLS[:length]))
    assert to_numpy(column).dtype == np.bool_
    assert to_numpy(column).tolist() == BOOLS[:length].tolist()


@pytest.mark.parametrize("start", range(len(BOOLS)))
def test_a_slice_is_read_from_where_it_starts(start: int) -> None:
    assert to_numpy(to_arrow(BOOLS)[start:]).tolist() == BOOLS[start:].tolist()
    assert to_numpy(to_arrow(np.arange(10))[start : start + 2]).tolist() == list(range(10))[start : start + 2]


def test_numbers_are_shared_not_copied() -> None:
    values = np.arange(4)
    column = to_arrow(values)
    values[0] = 9
    assert column.to_pylist() == to_numpy(column).tolist() == [9, 1, 2, 3]
    assert not to_numpy(column).flags.writeable


@pytest.mark.parametrize("values", [[1, None], [True, None]])
def test_a_null_is_an_error_not_a_number(values: list[object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        to_numpy(pa.array(values))


@pytest.mark.parametrize("text", ["", "<|im_end|>", "naïve 🙂\n"])
def test_scalar(text: str) -> None:
    assert scalar(text).equals(pa.scalar(text, pa.large_string()))
