"""Tokenising a parquet: what is kept, what is counted, and that the bytes depend on the input alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from talaria.common.errors import DataError, UserError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization import chatml_rows
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.encoder import EncodingMismatch
from talaria.tokenization.loading import Loading, load
from talaria.tokenization.stage import merge, tokenize, tokenize_range

from tests.support.conversations import HANDWRITTEN, MESSAGES, Conversation, assistant, numbered, system, user, write_parquet

LONG = [user("Count"), assistant(" ".join(map(str, range(200))))]


def run(
    tmp_path: Path, small_tokenizer: Path, conversations: Sequence[Conversation | None], name: str = "tokens", **options: Any
) -> tuple[Path, dict[str, Any]]:
    parquet = write_parquet(tmp_path / f"{name}.parquet", conversations, options.pop("kind", MESSAGES))
    facts = tokenize(parquet, small_tokenizer, tmp_path / name, Tokenize(**options))
    return tmp_path / name, facts


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_folder_holds_what_the_rule_says(tmp_path: Path, small_tokenizer: Path) -> None:
    conversations = list(HANDWRITTEN.values())
    folder, facts = run(tmp_path, small_tokenizer, conversations)
    data = datasets.load_from_disk(str(folder))
    plain = Loading(small_tokenizer).oracle
    assert data.features == datasets.Features(
        input_ids=datasets.List(datasets.Value("int32")),
        assistant_masks=datasets.List(datasets.Value("bool")),
        row=datasets.Value("int64"),
    )
    assert data["row"][:] == list(range(len(conversations)))
    for conversation, ids, mask in zip(conversations, data["input_ids"], data["assistant_masks"], strict=True):
        assert plain.ids(chat.segments(conversation)) == (ids, mask)
    assert facts["conversations"] == {"train": len(conversations)}
    assert facts["tokens"] == {"train": sum(map(len, data["input_ids"]))}
    assert facts["supervised_tokens"] == {"train": sum(map(sum, data["assistant_masks"]))}
    assert facts["compared_with_hugging_face"] >= 1
    assert json.loads((folder / "manifest.json").read_text())["facts"] == facts


def test_every_row_is_kept_or_counted(tmp_path: Path, small_tokenizer: Path) -> None:
    conversations = [
        [user("Hi"), assistant("Hello")],
        [user("Only a question")],
        [],
        None,
        LONG,
        [user("x " * 300), assistant("short")],
        [assistant("begins"), user("?"), assistant("")],
        [system("s"), assistant("\nbegins after a system message"), user("<|im_end|>?")],
    ]
    _, dropped = run(tmp_path, small_tokenizer, conversations, max_tokens=100)
    assert dropped["rows"] == 8
    assert dropped["conversations"] == {"train": 3}
    assert dropped["dropped"] == {"too_long": 2, "no_supervised_tokens": 3, "prompt_too_long": 0}
    assert dropped["truncated"] == 0
    assert dropped["oddities"] == {
        "control_token_text_rows": 1,
        "line_break_answers": 1,
        "empty_answers": 1,
        "answer_first_rows": 2,
        "no_answer_last_rows": 2,
    }


def test_truncation_keeps_a_budget_of_tokens_and_never_a_row_without_an_answer(tmp_path: Path, small_tokenizer: Path) -> None:
    conversations = [[user("Hi"), assistant("Hello")], LONG, [user("x " * 300), assistant("short")]]
    folder, facts = run(tmp_path, small_tokenizer, conversations, max_tokens=100, on_long="truncate")
    whole, _ = load(small_tokenizer).ids(chat.segments(LONG))
    tokens = open_tokens(folder)["train"]
    assert tokens is not None
    assert tokens.rows.tolist() == [0, 1]
    ids, mask, _ = tokens.gather([1])
    assert ids.tolist() == whole[:100]
    assert mask.any()
    assert facts["supervised_tokens"] == {"train": tokens.supervised.sum()}
    assert facts["dropped"] == {"too_long": 0, "no_supervised_tokens": 0, "prompt_too_long": 1}
    assert facts["truncated"] == 1


def test_a_conversation_of_exactly_max_tokens_is_whole(tmp_path: Path, small_tokenizer: Path) -> None:
    ids, _ = load(small_tokenizer).ids(chat.segments(LONG))
    _, kept = run(tmp_path, small_tokenizer, [LONG], max_tokens=len(ids))
    assert kept["conversations"] == {"train": 1}
    with pytest.raises(DataError, match=r"none of 1 conversations is left to train on; dropped: \{'too_long': 1"):
        run(tmp_path, small_tokenizer, [LONG], name="less", max_tokens=len(ids) - 1)


def test_the_held_out_split_depends_on_content_alone(tmp_path: Path, small_tokenizer: Path) -> None:
    conversations = numbered(400)
    doubled = [*conversations, *reversed(conversations), *numbered(600)[400:]]

    def held_out(name: str, rows: list[Conversation], **options: Any) -> set[str]:
        folder, _ = run(tmp_path, small_tokenizer, rows, name=name, **options)
        data = datasets.load_from_disk(str(folder))
        split = {part: {rows[row][0]["content"] for row in data[part]["row"]} for part in data}
        assert not split["train"] & split["validation"]
        return split["validation"]

    first = held_out("first", conversations, validation_fraction=0.1)
    assert 20 < len(first) < 60
    assert first == {text for text in held_out("doubled", doubled, validation_fraction=0.1) if int(text.split()[2]) < 400}
    assert first < held_out("more", conversations, validation_fraction=0.2)
    assert first == held_out("shorter", conversations, validation_fraction=0.1, max_tokens=200)


def test_no_row_held_out_leaves_a_folder_that_opens(tmp_path: Path, small_tokenizer: Path) -> None:
    folder, facts = run(tmp_path, small_tokenizer, numbered(3), validation_fraction=1e-9)
    assert facts["conversations"] == {"train": 3, "validation": 0}
    assert {name: len(split) for name, split in datasets.load_from_disk(str(folder)).items()} == {"train": 3, "validation": 0}
    assert open_tokens(folder)["validation"] is None


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More rows than a record batch, in row groups and shards that do not line up with it."""
    rows: list[Conversation | None] = [*numbered(9500)]
    rows[4000:4100] = [[user("nothing to learn")]] * 100
    return write_parquet(tmp_path_factory.mktemp("large") / "messages.parquet", rows, row_group_size=1700)


@pytest.fixture(scope="module")
def reference(large: Path, small_tokenizer: Path) -> dict[str, str]:
    tokenize(large, small_tokenizer, large.parent / "reference", OPTIONS)
    return digests(large.parent / "reference")


OPTIONS = Tokenize(shard_rows=4500, validation_fraction=0.05, max_tokens=120, workers=1)


@pytest.mark.parametrize("workers", [2, 8])
def test_bytes_are_the_same_for_any_number_of_workers(
    large: Path, reference: dict[str, str], workers: int, tmp_path: Path, small_tokenizer: Path
) -> None:
    tokenize(large, small_tokenizer, tmp_path / "tokens", OPTIONS.model_copy(update={"workers": workers}))
    assert digests(tmp_path / "tokens") == reference
    assert len([name for name in reference if name.startswith("train/data-")]) == 3


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_bytes_are_the_same_for_any_number_of_parts(
    large: Path, reference: dict[str, str], parts: int, tmp_path: Path, small_tokenizer: Path
) -> None:
    folders = [tmp_path / f"part-{number}" for number in range(parts)]
    for number, folder in enumerate(folders):
        tokenize_range(large, small_tokenizer, folder, OPTIONS, number, parts)
    (tmp_path / "tokens").mkdir()
    facts = merge(folders[::-1], small_tokenizer, tmp_path / "tokens", OPTIONS)
    assert digests(tmp_path / "tokens") == {name: value for name, value in reference.items() if name != "manifest.json"}
    assert facts == json.loads((large.parent / "reference" / "manifest.json").read_text())["facts"]


def test_bytes_do_not_depend_on_how_the_parquet_is_stored(
    large: Path, reference: dict[str, str], tmp_path: Path, small_tokenizer: Path
) -> None:
    import polars as pl

    pl.read_parquet(large).write_parquet(tmp_path / "large.parquet", row_group_size=9500, compression="uncompressed")
    tokenize(tmp_path / "large.parquet", small_tokenizer, tmp_path / "tokens", OPTIONS)
    assert digests(tmp_path / "tokens") == reference


def test_both_encoders_write_the_same_bytes(
    large: Path, reference: dict[str, str], tmp_path: Path, small_tokenizer: Path
) -> None:
    facts = tokenize(large, small_tokenizer, tmp_path / "tokens", OPTIONS.model_copy(update={"backend": "tokenizers"}))
    assert facts["backend"] == "tokenizers"
    assert {name: value for name, value in digests(tmp_path / "tokens").items() if name != "manifest.json"} == {
        name: value for name, value in reference.items() if name != "manifest.json"
    }


def test_the_parts_of_a_large_parquet_hold_it_all(large: Path, reference: dict[str, str]) -> None:
    tokens = open_tokens(large.parent / "reference")
    rows = np.sort(np.concatenate([split.rows for split in tokens.values() if split is not None]))
    facts = json.loads((large.parent / "reference" / "manifest.json").read_text())["facts"]
    assert len(rows) + sum(facts["dropped"].values()) == 9500 == facts["rows"]
    assert facts["supervised_tokens"] == {name: split.supervised.sum() for name, split in tokens.items() if split is not None}
    assert facts["dropped"]["no_supervised_tokens"] == 100
    assert set(range(9500)) - set(rows.tolist()) >= set(range(4000, 4100))
    assert len(set(rows.tolist())) == len(rows)


def test_a_wrong_id_or_mask_stops_the_run(tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = chatml_rows.encode

    def wrong(*arguments: Any) -> Any:
        batch = true(*arguments)
        ids = batch.ids.copy()
        ids[batch.offsets[:-1] + 3] += 1
        return replace(batch, ids=ids)

    monkeypatch.setattr(chatml_rows, "encode", wrong)
    with pytest.raises(EncodingMismatch, match=r"tokens.parquet, row \d+: its ids or loss mask differ from the plain rule's"):
        run(tmp_path, small_tokenizer, numbered(50))
    assert [path.name for path in tmp_path.iterdir()] == ["tokens.parquet"]


@pytest.mark.parametrize(
    ("kind", "values", "sentence"),
    [
        (pa.string(), ["hello"], "needs a column messages: list<struct<role, content>>, found messages: string"),
        (pa.list_(pa.struct([("role", pa.string())])), [[{"role": "user"}]], "found messages: list<element: struct<role"),
    ],
)
def test_a_parquet_of_another_shape_is_refused(
    kind: pa.DataType, values: list[Any], sentence: str, tmp_path: Path, small_tokenizer: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(sentence)):
        run(tmp_path, small_tokenizer, values, kind=kind)
    assert not (tmp_path / "tokens").exists()


def test_an_input_that_is_not_there_or_no_parquet(tmp_path: Path, small_tokenizer: Path) -> None:
    with pytest.raises(DataError, match="no such file; make it with `talaria convert`"):
        tokenize(tmp_path / "none.parquet", small_tokenizer, tmp_path / "tokens", Tokenize())
    (tmp_path / "text.parquet").write_text("not a parquet")
    with pytest.raises(DataError, match="not a parquet file that can be read"):
        tokenize(tmp_path / "text.parquet", small_tokenizer, tmp_path / "tokens", Tokenize())


def test_only_an_output_of_ours_is_replaced(tmp_path: Path, small_tokenizer: Path) -> None:
    folder, _ = run(tmp_path, small_tokenizer, numbered(3))
    again, facts = run(tmp_path, small_tokenizer, numbered(5))
    assert again == folder
    assert facts["rows"] == 5
    assert len(datasets.load_from_disk(str(folder))) == 5
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    (tmp_path / "precious" / "manifest.json").write_text("[not ours")
    with pytest.raises(UserError, match="there is something there that `talaria tokenize` did not make"):
        run(tmp_path, small_tokenizer, numbered(3), name="precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "mine"


def test_a_tokenizer_that_fastokens_cannot_read_falls_back_and_says_so(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "user": 1, "assistant": 2, "Hi": 3}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    words.save(str(tmp_path / "tokenizer.json"))
    parquet = write_parquet(tmp_path / "messages.parquet", [[user("Hi"), assistant("Hi Hi")]])
    facts = tokenize(parquet, tmp_path, tmp_path / "tokens", Tokenize())
    assert facts["backend"] == "tokenizers"
    assert "unsupported pre-tokenizer" in facts["fallback"][0]
    tokens = open_tokens(tmp_path / "tokens")["train"]
    assert tokens is not None
    assert tokens.gather([0])[0].tolist() == [4, 1, 3, 5, 4, 2, 3, 3, 5]
    with pytest.raises(DataError, match="fastokens cannot be used"):
        tokenize(parquet, tmp_path, tmp_path / "other", Tokenize(backend="fastokens"))
