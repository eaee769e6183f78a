"""`talaria check`: what a run would do with a source, said from a sample, and where it would stop."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from talaria.cli import stage_commands  # noqa: F401
from talaria.cli.app import app
from talaria.common.errors import UserError
from talaria.config.schema import Config
from talaria.data import source_sample
from talaria.workflow.check_data import check
from typer.testing import CliRunner

from tests.support.qwen_tokenizer import tokenizer

TURNS = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "5", "weight": 0}, {"from": "gpt", "value": "4"}]
ALPACA = {"instruction": "Add.", "input": "2, 2", "output": "4"}
CALL = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}]
BAD = {"conversations": [{"from": "bot", "value": "x"}]}


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["check", *words])


def test_what_is_there_is_said_by_name_and_a_sound_source_passes(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    lines(folder / "a.jsonl", {"conversations": TURNS, "system": "Be\x1b[2J brief."}, {"messages": CALL})
    lines(folder / "b.jsonl", ALPACA | {"label": False})
    (folder / "notes.txt").write_text("x")
    result = run(str(folder), "--set", "tokenize.template=own")
    assert result.exit_code == 0, result.output
    for text in (
        "looked at 3 rows of 2 of 2 files",
        "left out: notes.txt",
        "not read: label",
        "shapes: alpaca: 1, conversations: 1, messages: 1",
        "system column to the first message: 1",
        "answers: trained: 3, masked: 1, empty: 0, with_tool_calls: 1",
        "system: Be\\x1b[2J brief.",
        "assistant: 5  {'weight': 0.0}",
        "assistant (trained): 4",
    ):
        assert text in result.output


def test_it_stops_where_a_run_would_and_says_why_with_file_and_row(tmp_path: Path) -> None:
    lines(tmp_path / "data" / "a.jsonl", ALPACA)
    lines(tmp_path / "data" / "b.jsonl", ALPACA, BAD, {"messages": 3})
    result = run(str(tmp_path / "data"), "--json")
    assert isinstance(result.exception, UserError)
    assert "data/b.jsonl: row 1 (counted from 0): turn 0 has the unknown role 'bot'" in str(result.exception)
    assert str(result.exception).endswith("; fix the row or set convert.on_bad_row to drop.")
    facts = json.loads(result.stdout)
    assert facts["dropped"] == {"unknown_role": 1, "not_a_list": 1}
    assert facts["examples"]["not_a_list"].endswith("row 2 (counted from 0): messages is a number, not a list.")
    assert run(str(tmp_path / "data"), "--set", "convert.on_bad_row=drop").exit_code == 0
    assert run(str(tmp_path / "data"), "--set", "convert.on_bad_row=drop", "--set", "convert.roles.bot=assistant").exit_code == 0


def test_an_empty_answer_is_not_counted_among_the_trained(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", ALPACA, ALPACA | {"output": " "}, {"messages": [{"role": "assistant", "content": ""}]})
    result = run(str(source))
    assert "answers: trained: 1, masked: 0, empty: 2, with_tool_calls: 0" in result.output
    assert "an empty answer teaches the model to end at once; convert.drop_empty_answers drops its row" in result.output
    assert "answers: trained: 1, masked: 0, empty: 0," in run(str(source), "--set", "convert.drop_empty_answers=true").output


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("tool_calls", {"messages": CALL}),
        ("tools", ALPACA | {"tools": '[{"name": "f", "parameters": {}}]'}),
        ("reasoning_content", {"messages": [{"role": "assistant", "content": "4", "reasoning_content": "A sum."}]}),
    ],
)
def test_what_plain_chatml_does_not_render_stops_before_there_is_a_tokenizer(tmp_path: Path, name: str, row: Any) -> None:
    source = str(lines(tmp_path / "a.jsonl", ALPACA, row))
    refused = run(source)
    assert isinstance(refused.exception, UserError)
    assert f"the sample, row 1: has {name}, which tokenize.template: chatml does not render" in str(refused.exception)
    assert "one conversation:" in refused.output
    ways_out = re.findall(r"(tokenize\.\w+) to (\w+)", str(refused.exception))
    assert len(ways_out) == (3 if name == "reasoning_content" else 2)
    for setting, value in ways_out:
        assert run(source, "--set", f"{setting}={value}").exit_code == 0


def test_a_sample_of_a_long_source_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_sample, "BYTES", 1000)
    monkeypatch.setattr(source_sample, "ROWS", 5)
    monkeypatch.setattr(source_sample, "FILES", 3)
    for number in range(7):
        lines(tmp_path / "json" / f"{number}.jsonl", *[ALPACA] * 200)
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([ALPACA] * 200), tmp_path / "parquet" / f"{number}.parquet")
    facts = check(tmp_path / "json", Config(name="x"))
    assert (facts["files"], facts["looked_at"]) == (7, 3)
    assert 0 < facts["rows"] < 300  # of 600 in the three
    assert check(tmp_path / "parquet", Config(name="x"))["rows"] == 15


def test_with_a_tokenizer_a_conversation_is_rendered_and_what_tokenize_refuses_stops(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", {"conversations": TURNS})
    result = run(str(source), "--tokenizer", str(tokenizer()))
    assert result.exit_code == 0, result.exception
    assert "<|im_start|>user\n2+2?<|im_end|>" in result.output
    assert "assistant\n[4" in result.output
    assert "assistant\n5" in result.output
    missing = run(str(source), "--tokenizer", str(tmp_path / "none"))
    assert "no such tokenizer folder" in str(missing.exception)
