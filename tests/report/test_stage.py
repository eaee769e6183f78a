"""The data report: its numbers against a plain count over the rows, and a page that data cannot break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from talaria.config import load as settings
from talaria.config.data_settings import Convert, Tokenize
from talaria.data.convert import convert
from talaria.data.synthetic.generator import generate
from talaria.report import stage
from talaria.report.stage import distribution, measure_batch, report
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.stage import tokenize

ROWS = 1500
STAGES = ("download", "convert", "base", "tokenize", "report")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    tree = {
        "name": "small",
        "download": {"source": "sample", "rows": ROWS},
        "convert": {"drop_empty_answers": True},
        "base": {"source": "random", "vocab_size": 400},
        "tokenize": {"max_tokens": 1024, "validation_fraction": 0.1},
    }
    config = settings.parse(tree, "test")
    store = Store(tmp_path_factory.mktemp("store"))
    outputs: dict[str, Output] = {}
    for name in STAGES:
        outputs[name] = run_stage(name, config, store, outputs)
    return outputs


@pytest.fixture(scope="module")
def measured(outputs: dict[str, Output]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((outputs["report"].path / "report.json").read_text())
    return found


def test_every_row_is_accounted_for(measured: dict[str, Any], outputs: dict[str, Output]) -> None:
    dropped = {(drop["stage"], drop["reason"]): drop["rows"] for drop in measured["dropped"] if drop["rows"]}
    assert dropped == {("convert", "empty_answer"): 1, ("tokenize", "too_long"): 1}
    assert all(drop["meaning"] != drop["reason"] for drop in measured["dropped"])
    kept = sum(measured["conversations"].values())
    assert kept + sum(dropped.values()) == ROWS
    assert measured["rows"] == ROWS - 1
    assert measured["conversations"] == outputs["tokenize"].facts["conversations"]


def test_the_numbers_are_those_of_the_rows(measured: dict[str, Any], outputs: dict[str, Output]) -> None:
    rows = [row["conversations"] for row in generate(ROWS, 0) if all(turn["value"] for turn in row["conversations"])]
    assert measured["with_system"] == sum(any(turn["from"] == "system" for turn in turns) for turns in rows)
    assert measured["multi_turn"] == sum(sum(turn["from"] == "human" for turn in turns) > 1 for turns in rows)
    assert measured["duplicates"] == len(rows) - len(
        {json.dumps(turns, sort_keys=True).replace('"weight": ', "") for turns in rows}
    )
    characters = [sum(len(turn["value"]) for turn in turns) for turns in rows]
    assert measured["distributions"]["characters"]["quantiles"]["max"] == max(characters)
    assert measured["distributions"]["characters"]["mean"] == pytest.approx(np.mean(characters), abs=0.01)
    splits = [split for split in open_tokens(outputs["tokenize"].path).values() if split is not None]
    lengths = np.concatenate([split.lengths for split in splits])
    assert measured["tokens"] == lengths.sum()
    assert measured["supervised_tokens"] == sum(split.supervised.sum() for split in splits)
    assert measured["distributions"]["tokens"]["quantiles"]["max"] == lengths.max()
    for name, found in measured["distributions"].items():
        total = len(rows) if name in ("characters", "user_turns") else len(lengths)
        assert sum(entry["rows"] for entry in found["bins"]) == total


def test_sources_longest_and_odd_rows(measured: dict[str, Any]) -> None:
    assert sum(entry["rows"] for entry in measured["sources"]) == ROWS - 1
    assert sum(entry["tokens"] for entry in measured["sources"]) == measured["tokens"]
    assert measured["longest"][0]["tokens"] is None, "the longest was dropped"
    assert "Read this. zero one two" in measured["longest"][0]["text"]
    counts = {oddity["name"]: oddity["rows"] for oddity in measured["oddities"]}
    assert counts["answer_first"] == counts["control_text"] == 1
    assert counts["blank_answer"] == counts["no_answer"] == counts["broken_text"] == 0


ODD: dict[str, list[list[tuple[str, str]]]] = {
    "no_answer": [[("human", "a")], []],
    "answer_first": [[("gpt", "a")], [("system", "s"), ("gpt", "a"), ("human", "q"), ("gpt", "a")]],
    "ends_unanswered": [[("human", "q"), ("gpt", "a"), ("human", "q")]],
    "blank_answer": [[("human", "q"), ("gpt", " \n")]],
    "same_role_twice": [[("human", "q"), ("human", "q"), ("gpt", "a")]],
    "control_text": [[("human", "<|im_start|>"), ("gpt", "a")], [("human", "q"), ("gpt", "b<|endoftext|>")]],
    "broken_text": [[("human", "\ufffd"), ("gpt", "a")], [("human", "q"), ("gpt", "a\0")]],
}


Conversation = list[tuple[str, str]]


def small_report(
    folder: Path, outputs: dict[str, Output], conversations: list[Conversation], **columns: Any
) -> tuple[dict[str, Any], str]:
    rows = [{"conversations": [{"from": role, "value": text} for role, text in turns]} | columns for turns in conversations]
    (folder / "rows.json").write_text(json.dumps(rows))
    convert(folder / "rows.json", folder / "messages.parquet", Convert())
    tokenize(folder / "messages.parquet", outputs["base"].path, folder / "tokens", Tokenize())
    report(folder, folder / "tokens", folder / "report")
    return json.loads((folder / "report" / "report.json").read_text()), (folder / "report" / "report.html").read_text()


@pytest.mark.parametrize("name", ODD)
def test_each_oddity_is_found_where_it_is(tmp_path: Path, outputs: dict[str, Output], name: str) -> None:
    plain = [("human", "q"), ("gpt", "a")]
    conversations = [plain, [("system", "s"), *plain, *plain]]
    for turns in ODD[name]:
        conversations += [turns, plain]
    measured, _ = small_report(tmp_path, outputs, conversations)
    found = {oddity["name"]: [row["row"] for row in oddity["examples"]] for oddity in measured["oddities"]}
    assert found[name] == list(range(2, len(conversations), 2))


class Tags(HTMLParser):
    """The elements that are not one of the page's own kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)


def test_text_from_the_data_cannot_become_markup(tmp_path: Path, outputs: dict[str, Output]) -> None:
    evil = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>"
    measured, page = small_report(tmp_path, outputs, [[("human", evil), ("gpt", evil)]], source=evil)
    tags = Tags()
    tags.feed(page)
    assert not tags.found & {"script", "img", "link", "iframe"}
    assert page.count("&lt;script&gt;") >= 3
    assert measured["sources"][0]["source"] == evil


def test_the_page_stands_alone_and_follows_the_readers_colours(tmp_path: Path, outputs: dict[str, Output]) -> None:
    _, page = small_report(tmp_path, outputs, [[("human", "q"), ("gpt", "a")]])
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 4


def test_a_histogram_covers_every_value() -> None:
    values = np.array([3, 3, 4, 900, *range(100, 160)])
    found = distribution(values)
    assert sum(entry["rows"] for entry in found["bins"]) == len(values)
    assert found["open"]
    few = distribution(np.array([1, 1, 2, 5]))
    assert [(entry["from"], entry["rows"]) for entry in few["bins"]] == [(1, 2), (2, 1), (3, 0), (4, 0), (5, 1)]
    assert distribution(np.array([]))["bins"] == []


MESSAGES = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def tokens_of(parquet: Path, outputs: dict[str, Output]) -> Path:
    folder = parquet.with_name("tokens")
    tokenize(parquet, outputs["base"].path, folder, Tokenize())
    return folder


def test_text_columns_of_any_width_and_sources_that_are_lists_are_reported(tmp_path: Path, outputs: dict[str, Output]) -> None:
    parquet = tmp_path / "messages.parquet"
    rows = [{"source": source, "messages": MESSAGES} for source in (["wiki", "web"], None, ["wiki", "web"])]
    pl.DataFrame(rows).write_parquet(parquet)  # polars writes large strings
    report(parquet, tokens_of(parquet, outputs), tmp_path / "report")
    found = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [(entry["source"], entry["rows"]) for entry in found["sources"]] == [('["wiki", "web"]', 2), (None, 1)]
    assert found["duplicates"] == 2


def test_an_answer_that_calls_a_tool_is_not_blank(tmp_path: Path) -> None:
    struct = pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.string())])
    call = {"role": "assistant", "content": None, "tool_calls": '[{"type": "function"}]'}
    blank = {"role": "assistant", "content": ""}
    measured = measure_batch(pa.array([[MESSAGES[0], call], [MESSAGES[0], blank]], pa.list_(struct)))
    assert measured.odd["blank_answer"].tolist() == [False, True]
    assert measured.characters.tolist() == [1 + len(call["tool_calls"]), 1]


def test_a_report_that_cannot_be_made_is_told_in_its_place_and_stops_nothing(
    outputs: dict[str, Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise pa.ArrowNotImplementedError("no <kernel>")

    monkeypatch.setattr(stage, "measure", fail)
    folders = {name: outputs[name].path for name in ("download", "convert", "tokenize")}
    facts = stage.run(settings.parse({"name": "small"}, "test"), folders, tmp_path)
    assert facts == {"failed": "The report could not be made: ArrowNotImplementedError: no <kernel>"}
    assert json.loads((tmp_path / "report.json").read_text())["failed"] == facts["failed"]
    assert "no &lt;kernel&gt;" in (tmp_path / "report.html").read_text()
    assert "could not be made" in caplog.text
    with pytest.raises(pa.ArrowNotImplementedError):  # who asks for the report alone sees why
        report(outputs["convert"].path, outputs["tokenize"].path, tmp_path / "own")
