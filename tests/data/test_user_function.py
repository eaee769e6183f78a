"""A user's own LazyFrame -> LazyFrame step, on an Alpaca-shaped source."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from talaria.common.errors import ConfigError, DataError
from talaria.common.user_code import ALLOW
from talaria.config.data_settings import Convert
from talaria.config.schema import Config
from talaria.data.convert import convert, fingerprint

ALPACA = """
import polars as pl

def from_alpaca(rows: pl.LazyFrame) -> pl.LazyFrame:
    question = pl.concat_str("instruction", pl.when(pl.col("input") != "").then("input"), separator="\\n\\n", ignore_nulls=True)
    turns = [
        pl.struct(pl.lit("human").alias("from"), question.alias("value")),
        pl.struct(pl.lit("gpt").alias("from"), pl.col("output").alias("value")),
    ]
    return rows.with_columns(pl.concat_list(turns).alias("conversations")).unique("instruction", maintain_order=True)

def to_messages(rows):
    user = pl.struct(pl.lit("user").alias("role"), pl.col("instruction").alias("content"))
    answer = pl.struct(pl.lit("assistant").alias("role"), pl.col("output").alias("content"))
    return rows.select("id", messages=pl.concat_list([user, answer]))

def no_frame(rows):
    return rows.collect()

def wrong_column(rows):
    return rows.select("nothing")

def wrong_role(rows):
    robot = pl.struct(pl.lit("robot").alias("from"), pl.element().struct.field("value"))
    return from_alpaca(rows).with_columns(conversations=pl.col("conversations").list.eval(robot))

not_a_function = 3
"""
ROWS = [
    {"id": n, "instruction": f"Add {n} and 1", "input": "" if n % 2 else "Be brief", "output": str(n + 1)} for n in range(50)
] + [{"id": 50, "instruction": "Add 0 and 1", "input": "", "output": "1"}]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "alpaca_step.py").write_text(ALPACA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "alpaca_step", raising=False)
    monkeypatch.setenv(ALLOW, "1")
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(ROWS))
    return path


def rows_of(source: Path, function: str, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    output = source.with_suffix(".parquet")
    facts = convert(source, output, Convert(function=f"alpaca_step:{function}", **settings))
    return pq.read_table(output).to_pylist(), facts


def test_alpaca_rows_become_messages(source: Path) -> None:
    rows, facts = rows_of(source, "from_alpaca")
    assert list(rows[0]) == ["id", "instruction", "input", "output", "conversations", "messages"]
    assert rows[0]["messages"] == [{"role": "user", "content": "Add 0 and 1\n\nBe brief"}, {"role": "assistant", "content": "1"}]
    assert rows[1]["messages"] == [{"role": "user", "content": "Add 1 and 1"}, {"role": "assistant", "content": "2"}]
    assert (facts["rows_in"], facts["rows_of_function"], facts["rows"]) == (51, 50, 50)
    assert sorted(path.name for path in source.parent.glob("*.p*")) == ["alpaca.parquet", "alpaca_step.py"]


def test_it_may_make_messages_itself_and_sees_only_the_rows_asked_for(source: Path) -> None:
    rows, facts = rows_of(source, "to_messages", rows=3)
    assert [list(row) for row in rows] == [["id", "messages"]] * 3
    assert facts["rows_in"] == 3


def test_the_options_hold_for_what_it_returns(source: Path) -> None:
    rows, facts = rows_of(source, "to_messages", drop_duplicates=True)
    assert len(rows) == 50
    assert facts["dropped"]["duplicate"] == 1


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("no_frame", DataError, "returned DataFrame, it should return a polars LazyFrame"),
        ("wrong_column", DataError, "failed: .*nothing"),
        ("wrong_role", DataError, r"what alpaca_step:wrong_role returned: row 0 .*unknown role 'robot'"),
        ("missing", ConfigError, "cannot import 'alpaca_step:missing'.*PYTHONPATH"),
        ("not_a_function", ConfigError, "is no function"),
    ],
)
def test_what_goes_wrong_in_it_is_told_in_one_sentence(source: Path, function: str, error: type, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        rows_of(source, function)
    assert "\n" not in str(caught.value)
    assert not source.with_suffix(".parquet").exists()


def test_it_runs_only_where_the_deployment_allows_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW, "0")
    with pytest.raises(ConfigError, match="set TALARIA_ALLOW_CUSTOM_CODE=1"):
        rows_of(source, "from_alpaca")
    assert "alpaca_step" not in sys.modules


def test_its_source_is_part_of_the_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(name="x", convert=Convert(function="alpaca_step:from_alpaca"))
    before = fingerprint(config)
    assert before == fingerprint(config)
    (source.parent / "alpaca_step.py").write_text(ALPACA + "# changed\n")
    assert fingerprint(config) != before
    assert fingerprint(Config(name="x")) is None


def test_modules_that_it_imports_are_part_of_the_key(source: Path) -> None:
    """findings/datasets_stale_cache.sh: an edited helper would otherwise give the old rows again."""
    folder = source.parent
    (folder / "alpaca_step.py").write_text(f"{ALPACA}\ndef late():\n    import alpaca_rules.cleaning\n")
    (folder / "alpaca_rules").mkdir()
    helpers = {"__init__": "", "cleaning": "import json\nfrom .patterns import LINK\n", "patterns": "LINK = 1\n", "unused": ""}
    for name, text in helpers.items():
        (folder / "alpaca_rules" / f"{name}.py").write_text(text)
    config = Config(name="x", convert=Convert(function="alpaca_step:from_alpaca"))
    keys = [fingerprint(config)]
    for name, text in helpers.items():
        (folder / "alpaca_rules" / f"{name}.py").write_text(f"{text}# changed\n")
        keys.append(fingerprint(config))
    assert len(set(keys)) == 4
    assert keys[-1] == keys[-2]
    assert "alpaca_rules" not in sys.modules
