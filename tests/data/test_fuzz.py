"""Whatever stands in the rows, every row is converted, dropped and counted, or refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from talaria.common.errors import UserError
from talaria.common.printable import printable
from talaria.config.data_settings import Convert
from talaria.data.convert import convert

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALAR = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
ANYTHING = st.recursive(
    SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
ROLES = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", "narrator", ""])
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES,
        "from": ROLES,
        "content": TEXT | st.none() | ANYTHING,
        "value": TEXT | st.none(),
        "weight": st.sampled_from([0, 1, None, 0.5, "x"]),
        "tool_calls": ANYTHING,
    },
)
ROW = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE, max_size=3) | ANYTHING,
        "conversations": st.lists(MESSAGE, max_size=3) | st.none(),
        "instruction": TEXT,
        "output": TEXT | st.none(),
        "tools": ANYTHING,
        "id": SCALAR,
    },
)
GOOD = TEXT.map(lambda text: {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": f"a{text}"}]})
ODD = MESSAGE.map(lambda message: {"messages": [{"role": "user", "content": "q"}, message]})
BOUNDED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


def answer(source: Path, output: Path, **setting: Any) -> dict[str, Any] | str:
    """The facts of a conversion, or its refusal: one printable sentence, and nothing at the output's place."""
    output.unlink(missing_ok=True)
    try:
        return convert(source, output, Convert(**setting))
    except UserError as error:
        refused = str(error)
    assert not output.exists()
    assert printable(refused) == refused
    assert refused.endswith((".", "?", ")"))
    return refused


@BOUNDED
@given(rows=st.lists(GOOD | ODD | ROW, min_size=1, max_size=5), good=GOOD)
def test_every_row_is_accounted_for(tmp_path: Path, rows: list[dict[str, Any]], good: dict[str, Any]) -> None:
    rows = [good, *rows]
    source, output = tmp_path / "rows.jsonl", tmp_path / "messages.parquet"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dropping = answer(source, output, on_bad_row="drop")
    if isinstance(dropping, str):  # the source as a whole: columns of which nobody can say what they are
        assert isinstance(answer(source, output), str)
        return
    assert dropping["rows_in"] == len(rows) == dropping["rows"] + sum(dropping["dropped"].values())
    assert pq.read_metadata(output).num_rows == dropping["rows"]
    strict = answer(source, output)
    assert isinstance(strict, str) == (dropping["rows"] < len(rows)), "a bad row stops a strict run, and nothing else does"


@BOUNDED
@given(text=st.binary(max_size=80) | st.text(st.sampled_from('{}[]":,tfn 0e-.\n\\u'), max_size=60).map(str.encode))
def test_any_bytes_as_a_file(tmp_path: Path, text: bytes) -> None:
    source, output = tmp_path / "rows.jsonl", tmp_path / "messages.parquet"
    source.write_bytes(text)
    told = answer(source, output, on_bad_row="drop")
    if isinstance(told, dict):
        assert told["rows_in"] == told["rows"] + sum(told["dropped"].values())
