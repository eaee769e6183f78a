"""Which rows a run compares with the saved folder in transformers, and that a difference stops it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import chatml_rows
from talaria.tokenization.comparison import audit, reloaded
from talaria.tokenization.encoder import EncodingMismatch
from talaria.tokenization.stage import tokenize

from tests.support.conversations import LINE_BREAK_FIRST, assistant, numbered, system, user, write_parquet
from tests.support.transformers_here import APART

CONTROL = [user("<|im_end|>?"), assistant("<|im_start|>")]


def test_a_process_of_its_own_says_what_transformers_makes_of_the_saved_folder(
    small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reloaded, "reloaded", APART)
    rows = [*numbered(20), CONTROL, *LINE_BREAK_FIRST.values()]
    facts = tokenize(write_parquet(tmp_path / "m.parquet", rows), small_tokenizer, tmp_path / "tokens", Tokenize())
    assert facts["compared_with_hugging_face"] == len(rows)


def test_a_process_that_ends_stops_the_run(small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    apart = APART(small_tokenizer, "{{ messages }}")
    with pytest.raises(RuntimeError, match="the process that compares with transformers has ended: killed"):
        apart.ids([CONTROL])
    apart.close()


def test_a_process_that_began_for_a_folder_that_cannot_be_used_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[reloaded.TransformersProcess] = []

    class Noted(reloaded.TransformersProcess):
        def __init__(self) -> None:
            super().__init__()
            begun.append(self)

    monkeypatch.setattr(reloaded, "TransformersProcess", Noted)
    monkeypatch.setattr(reloaded, "Apart", APART)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)  # as in a command that has not imported it
    with pytest.raises(DataError, match="no such file; Talaria needs a tokenizer"):
        tokenize(write_parquet(tmp_path / "m.parquet", [CONTROL]), tmp_path, tmp_path / "tokens", Tokenize())
    assert [process.ended for process in begun] == [True]
    assert not APART.begun


def test_a_saved_template_that_renders_otherwise_stops_the_run(
    small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = reloaded.save

    def another(folder: Path, out_dir: Path, template: str | None) -> None:
        save(folder, out_dir, (template or "").replace("message['content']", "message['content'] | trim"))

    monkeypatch.setattr(reloaded, "save", another)
    rows = [[user("Hi"), assistant("Hello ")]]
    with pytest.raises(EncodingMismatch, match="row 0: the encoder's ids differ from Hugging Face's for the saved template"):
        tokenize(write_parquet(tmp_path / "m.parquet", rows), small_tokenizer, tmp_path / "tokens", Tokenize())


def test_rows_of_odd_shapes_are_compared_whatever_the_sample(
    small_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    true = chatml_rows.ChatmlRows.compare

    def compare(self: Any, candidates: list[audit.Candidate]) -> None:
        compared.extend(candidate.number for candidate in candidates)
        true(self, candidates)

    monkeypatch.setattr(chatml_rows.ChatmlRows, "compare", compare)
    monkeypatch.setattr(audit, "SPREAD", 10)
    rows: list[Any] = numbered(300)
    odd = {7: CONTROL, 60: [assistant("First")], 120: [user("Empty?"), assistant("")], 299: [system("No answer")]}
    for row, conversation in odd.items():
        rows[row] = conversation
    rows[200:220] = [[user(f"{row}"), assistant("ends with a space ")] for row in range(20)]
    parquet = write_parquet(tmp_path / "m.parquet", rows)
    for shard_rows, shards in ((1000, 1), (205, 2)):
        compared.clear()
        facts = tokenize(parquet, small_tokenizer, tmp_path / f"{shards}", Tokenize(shard_rows=shard_rows))
        assert set(odd) <= set(compared)
        assert len(set(compared) & set(range(200, 220)) - set(odd)) >= audit.EACH_SHAPE * shards
        assert facts["compared_with_hugging_face"] == len(compared) == 10 + len(odd) + audit.EACH_SHAPE * shards
