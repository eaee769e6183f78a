"""Several sources in one configuration: each read in its own way, weighted and held out by content, and counted by name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from talaria.cli import stage_commands  # noqa: F401
from talaria.cli.app import app
from talaria.common.errors import UserError
from talaria.common.files import file_digest
from talaria.config.data_settings import Convert, Download
from talaria.config.schema import Config
from talaria.data.mixture_layout import MixtureLayout
from talaria.stages.table import key_of, planned_keys
from talaria.tokenization.dataset import open_tokens
from typer.testing import CliRunner

from tests.tokenization.chat_templates import FAMILIES, write_tokenizer

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}


def chat(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Count to {number}"}, {"role": "assistant", "content": f"{number}!"}]}


def write(folder: Path) -> None:
    """Conversations, pairs in columns of other names, calls of tools, and an exam that is a file of its own."""
    calls = [
        {
            "id": number,
            "tools": [{"name": "f", "parameters": {"type": "object", "properties": {}}}],
            "dialog": [
                {"speaker": "human", "text": f"Use f, {number}"},
                {"speaker": "bot", "text": "", "tool_calls": [CALL]},
            ],
        }
        for number in range(20)
    ]
    exam = [{"prompt": f"Exam {number}", "completion": "passed"} for number in range(7)]
    rows = {
        "chat/train.jsonl": [chat(number) for number in range(200)] + [chat(3), *exam],
        "chat/test.jsonl": exam,
        "pairs.jsonl": [{"q": f"Say {number}", "a": f"{number}"} for number in range(50)] + [{"q": "Count to 5", "a": "5!"}],
        "calls.jsonl": calls,
    }
    for name, lines in rows.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def tree(folder: Path) -> dict[str, Any]:
    def local(path: str, **more: Any) -> dict[str, Any]:
        return {"source": "local", "path": str(folder / path), **more}

    mapped = {
        "fields": {"messages": "dialog", "role": "speaker", "content": "text"},
        "roles": {"human": "user", "bot": "assistant"},
    }
    return {
        "name": "mixed",
        "sources": {
            "chat": {"download": local("chat"), "held_out": 0.1, "repeat": 0.5},
            "pairs": {
                "download": local("pairs.jsonl"),
                "convert": {"fields": {"prompt": "q", "completion": "a"}},
                "max_rows": 30,
                "repeat": 2.5,
            },
            "calls": {"download": local("calls.jsonl"), "convert": mapped, "held_out": 0.2},
            "exam": {"download": local("chat", files="test*"), "held_out": 1},
        },
        "tokenize": {"template": "own", "template_date": "2026-11-27"},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source files, run.yaml, and what the commands download, convert and tokenize make of them."""
    folder = tmp_path_factory.mktemp("mixture")
    write(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree(folder), sort_keys=False))
    write_tokenizer(FAMILIES["llama"], folder / "tokenizer")
    make(folder, "")
    return folder


def run(*words: str | Path) -> dict[str, Any]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.exception or result.output
    return dict(json.loads(result.stdout.splitlines()[-1]))


def make(folder: Path, suffix: str, *settings: str) -> None:
    """raw, messages.parquet and tokens, each with the suffix; the counts of convert in counts.json."""
    config, raw, parquet = folder / "run.yaml", folder / f"raw{suffix}", folder / f"messages{suffix}.parquet"
    run("download", config, "--output", raw, "--json", *settings)
    counts = run("convert", "--input", raw, "--output", parquet, config, "--json", *settings)
    (folder / f"counts{suffix}.json").write_text(json.dumps(counts))
    run(
        "tokenize",
        "--input",
        parquet,
        "--tokenizer",
        folder / "tokenizer",
        "--output",
        folder / f"tokens{suffix}",
        config,
        "--json",
    )


def rows_of(folder: Path, suffix: str = "") -> list[dict[str, Any]]:
    return list(pq.read_table(folder / f"messages{suffix}.parquet").to_pylist())


def said(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"])


def test_every_row_is_accounted_for_source_by_source(folder: Path) -> None:
    counts = json.loads((folder / "counts.json").read_text())
    rows = rows_of(folder)
    for name, own in counts["sources"].items():
        assert own["rows_in"] == own["chosen"] + own["held_out"] + sum(own["dropped"].values())
        mine = [row for row in rows if row["source"] == name]
        assert sum(row["held_out"] for row in mine) == own["held_out"]
        assert sum(not row["held_out"] for row in mine) == own["train"]
        assert len({row["source_row"] for row in mine if not row["held_out"]}) == own["chosen"]
    assert counts["rows_in"] + counts["repeated"] == counts["rows"] + sum(counts["dropped"].values())
    assert counts["rows"] == len(rows)
    chat, pairs = counts["sources"]["chat"], counts["sources"]["pairs"]
    assert chat["rows_in"] == 208
    assert chat["chosen"] == chat["train"] == round((208 - chat["held_out"] - chat["dropped"]["in_held_out"]) / 2)
    assert (pairs["chosen"], pairs["train"]) == (30, 75)  # 15 of them three times, 15 twice
    assert sorted(Counter(said(row) for row in rows if row["source"] == "pairs").values()) == [2] * 15 + [3] * 15
    exam = counts["sources"]["exam"]
    assert (exam["rows_in"], exam["chosen"], exam["held_out"]) == (7, 0, 7)


def test_each_source_has_its_own_mapping(folder: Path) -> None:
    rows = {row["source"]: row for row in rows_of(folder)}
    assert [message["role"] for message in rows["pairs"]["messages"]] == ["user", "assistant"]
    assert json.loads(rows["calls"]["tools"])[0]["function"]["name"] == "f"
    assert json.loads(rows["calls"]["messages"][1]["tool_calls"]) == [CALL]
    assert rows["chat"]["tools"] is None
    assert rows["chat"]["messages"][1]["tool_calls"] is None


def test_nothing_that_is_held_out_is_trained_whatever_source_says_it(folder: Path) -> None:
    counts = json.loads((folder / "counts.json").read_text())
    rows = rows_of(folder)
    held_out, trained = ({said(row) for row in rows if row["held_out"] is flag} for flag in (True, False))
    assert not held_out & trained
    assert (
        counts["sources"]["chat"]["dropped"]["in_held_out"] == 6
    )  # the exam stands in train.jsonl too, where its seventh row is held out
    split = open_tokens(folder / "tokens")
    assert {name: len(part) for name, part in split["validation"].by_source.items()} == {
        name: own["held_out"] for name, own in counts["sources"].items() if own["held_out"]
    }
    assert {name: len(part) for name, part in split["train"].by_source.items()} == {
        name: own["train"] for name, own in counts["sources"].items() if own["train"]
    }
    whole, parts = split["validation"], split["validation"].by_source.values()
    assert sum(part.targets.sum() for part in parts) == whole.targets.sum()
    for part in parts:
        ids, mask, _ = part.gather([0])
        place = whole.rows.tolist().index(part.rows[0])
        assert (ids == whole.gather([place])[0]).all()
        assert mask.sum() == part.supervised[0]


def test_the_same_bytes_come_out_again_and_weights_leave_the_held_out_set_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("talaria.data.convert_rows.threads", lambda: 1)
    make(folder, "-again")
    shards = sorted(path.relative_to(folder / "tokens") for path in (folder / "tokens").rglob("*.arrow"))
    assert len(shards) == 2
    for name in shards:
        assert file_digest(folder / "tokens" / name) == file_digest(folder / "tokens-again" / name)
    assert file_digest(folder / "messages.parquet") == file_digest(folder / "messages-again.parquet")
    more = {"sources.pairs.max_rows": 40, "sources.chat.repeat": 0.75}
    make(folder, "-more", *(word for name, value in more.items() for word in ("--set", f"{name}={value}")))
    validation = "validation/data-00000-of-00001.arrow"
    assert file_digest(folder / "tokens" / validation) == file_digest(folder / "tokens-more" / validation)
    before, after = ({(row["source"], row["source_row"]) for row in rows_of(folder, suffix)} for suffix in ("", "-more"))
    assert before < after, "larger weights only add rows"
    make(folder, "-seed", "--set", "sources.pairs.seed=1")
    other = {(row["source"], row["source_row"]) for row in rows_of(folder, "-seed")}
    assert other != before
    assert len(other) == len(before)


def test_a_plain_row_is_held_out_as_it_is_without_sources(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.parquet"
    run("convert", "--input", folder / "chat" / "train.jsonl", "--output", one, "--json")
    share = ["--set", "tokenize.validation_fraction=0.1", "--set", "tokenize.template=own", "--json"]
    run("tokenize", "--input", one, "--tokenizer", folder / "tokenizer", "--output", tmp_path / "tokens", *share)
    alone = pq.read_table(one).take(open_tokens(tmp_path / "tokens")["validation"].rows).to_pylist()
    assert [said(row) for row in alone] == [said(row) for row in rows_of(folder) if row["held_out"] and row["source"] == "chat"]
    words = [
        "--input",
        str(folder / "messages.parquet"),
        "--tokenizer",
        str(folder / "tokenizer"),
        "--output",
        str(tmp_path / "x"),
    ]
    refused = CliRunner().invoke(app, ["tokenize", *words, *share])
    assert "a mixture says itself what is held out" in str(refused.exception)


def test_the_report_has_a_line_a_source(folder: Path, tmp_path: Path) -> None:
    from talaria.report.stage import fill

    data = tmp_path / "data"
    data.mkdir()
    (data / "messages.parquet").write_bytes((folder / "messages.parquet").read_bytes())
    counts = json.loads((folder / "counts.json").read_text())
    (data / "manifest.json").write_text(json.dumps({"facts": counts}))
    facts = fill(data, folder / "tokens", tmp_path, name="mixed", download=folder / "raw")
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {(row["source"], row["source_row"]): json.dumps(row["messages"]) for row in rows_of(folder)}
    assert facts["duplicates"] == len(rows) - len(set(rows.values())) > 0, "the copies of a row are no duplicates"
    assert [(one["source"], one["train"]) for one in report["mixture"]] == [
        (name, own["train"]) for name, own in counts["sources"].items()
    ]
    tokens = open_tokens(folder / "tokens")
    assert sum(one["tokens"].get("train", 0) for one in report["mixture"]) == tokens["train"].lengths.sum()
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Mixture</h2>" in page
    assert "says the same as a held-out row of a source" in page
    assert str(folder / "pairs.jsonl") in page


def test_check_looks_at_every_source(folder: Path, tmp_path: Path) -> None:
    looked = CliRunner().invoke(app, ["check", str(folder / "run.yaml")])
    assert looked.exit_code == 0, looked.exception
    for text in ("source chat:", "source pairs:", "shapes: convert.fields: 51", "with_tool_calls: 20", "source exam:"):
        assert text in looked.output
    raw = CliRunner().invoke(app, ["check", str(folder / "raw"), str(folder / "run.yaml")])
    assert raw.exit_code == 0, raw.exception
    stopped = CliRunner().invoke(app, ["check", str(folder / "run.yaml"), "--set", "sources.calls.convert.roles={}"])
    assert str(stopped.exception).startswith("sources.calls: ")
    assert "no row is left to write; dropped: {'unknown_role': 20}" in str(stopped.exception)
    hub = {"name": "x", "sources": {"far": {"download": {"repo": "a/b"}}}}
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump(hub))
    far = CliRunner().invoke(app, ["check", str(tmp_path / "hub.yaml")])
    assert "sources.far.download: a/b is not on this machine; fetch it with `talaria download" in str(far.exception)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"download": {"source": "sample"}}, "download has no place beside sources"),
        ({"convert": {"on_bad_row": "drop"}}, "convert has no place beside sources: give each source its own"),
        ({"tokenize": {"validation_fraction": 0.1}}, "set sources.NAME.held_out"),
        ({"schedule": {"on_new_revision": True}}, "set schedule.cron"),
        ({"sources": {"../x": {"download": {"source": "sample"}}}}, "a name has letters, digits, - and _"),
        ({"sources": {"x": {"download": {"source": "sample"}, "held_out": 1}}}, "nothing is left to train on"),
        ({"sources": {"x": {"download": {"source": "local"}}}}, "sources.x.download: download.path is needed"),
        ({"sources": {"x": {}}}, "sources.x.download is not given"),
        ({"sources": {"x": {"download": {"source": "sample"}, "weight": 2}}}, "unknown setting sources.x.weight"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], sentence: str) -> None:
    from talaria.config.load import parse

    given = {"name": "x", "sources": {"x": {"download": {"source": "sample"}}}} | change
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        parse(given, "test")


def test_keys_of_a_single_source_are_what_they_were_and_those_of_a_mixture_follow_it() -> None:
    from talaria.stages.table import STAGES

    one = Config(name="x", download=Download(source="sample"))
    _, described = key_of(STAGES["convert"], one, {"download": "d"})
    assert described["settings"] == {"convert": Convert().key_fields()}
    assert described["outside"] is None

    def keys(**more: Any) -> dict[str, str]:
        sample = {"source": "sample", "rows": 10}
        sources = {"a": {"download": sample, **more}, "b": {"download": sample | {"seed": 1}}}
        base = {"source": "random"}
        return planned_keys(Config.model_validate({"name": "x", "sources": sources, "base": base}))

    first = keys()
    assert first == keys()
    assert first["download"] == keys(repeat=2)["download"]
    assert first["convert"] != keys(repeat=2)["convert"]
    assert first["convert"] != keys(convert={"drop_duplicates": True})["convert"]


def test_a_row_knows_its_source() -> None:
    layout = MixtureLayout(3, (("a", 0, 2), ("b", 2, 3), ("a", 3, 6), ("c", 6, 7)))
    assert {name: places.tolist() for name, places in layout.by_source([0, 2, 4, 5])} == {"a": [0, 2, 3], "b": [1]}
    assert MixtureLayout.of_json(json.loads(json.dumps(layout.as_json()))) == layout
