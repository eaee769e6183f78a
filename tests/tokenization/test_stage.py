"""The stage in the store: in one process, or spread over parts that Airflow maps; the output is the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from talaria.config.load import parse
from talaria.config.schema import Config
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store
from talaria.workflow import tokenize_parts as spread

from tests.support.conversations import numbered, write_parquet


@pytest.fixture
def upstream(tmp_path: Path, small_tokenizer: Path) -> dict[str, Output]:
    (tmp_path / "convert").mkdir()
    write_parquet(tmp_path / "convert" / "messages.parquet", numbered(700))
    return {
        "convert": Output(tmp_path / "convert", "key of convert", {}, 0),
        "base": Output(small_tokenizer, "key of base", {}, 0),
    }


def config(shards: int) -> Config:
    return parse({"name": "t", "tokenize": {"shards": shards, "shard_rows": 100, "validation_fraction": 0.1}}, "test")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }


def test_parts_joined_are_the_stage_itself(upstream: dict[str, Output], tmp_path: Path) -> None:
    whole = run_stage("tokenize", config(1), Store(tmp_path / "whole"), upstream)
    store = Store(tmp_path / "spread")
    parts = spread.parts_to_do(config(3), store, upstream)
    assert parts == [0, 1, 2]
    for part in reversed(parts):
        spread.tokenize_part(config(3), store, upstream, part)
    joined = spread.join(config(3), store, upstream)
    assert joined.key == whole.key
    assert joined.facts == whole.facts
    assert digests(joined.path) == digests(whole.path)
    assert spread.parts_to_do(config(3), store, upstream) == []


def test_the_manifest_accounts_for_every_row(upstream: dict[str, Output], tmp_path: Path) -> None:
    output = run_stage("tokenize", config(1), Store(tmp_path / "store"), upstream)
    facts = json.loads((output.path / "manifest.json").read_text())["facts"]
    assert facts["rows"] == 700 == sum(facts["conversations"].values()) + sum(facts["dropped"].values())
    assert facts["dropped"].keys() == {"too_long", "no_supervised_tokens", "prompt_too_long"}
