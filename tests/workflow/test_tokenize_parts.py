"""Tokenising in parts gives the bytes of one process, and an attempt after a failure does only what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from talaria.common.files import file_digest
from talaria.config.schema import Config
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store
from talaria.workflow import tokenize_parts

from tests.support import tiny_pipeline


def upstream(store: Store, config: Config) -> dict[str, Output]:
    def convert(folder: Path) -> dict[str, Any]:
        tiny_pipeline.write_messages(folder / "messages.parquet")
        return {}

    made = {"convert": store.run("convert", "c" * 64, convert, described_by={})}
    return made | {"base": run_stage("base", config, store, made)}


def configuration(shards: int) -> Config:
    return tiny_pipeline.config(tokenize={"shards": shards, "shard_rows": 30})


def content(output: Output) -> dict[str, str]:
    files = [path for path in output.path.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {str(path.relative_to(output.path)): file_digest(path) for path in files}


def spread_out(store: Store, config: Config, made: dict[str, Output], **options: Any) -> Output:
    for part in tokenize_parts.parts_to_do(config, store, made, **options):
        tokenize_parts.tokenize_part(config, store, made, part)
    return tokenize_parts.join(config, store, made, **options)


@pytest.mark.parametrize("shards", [2, 5, 20])
def test_any_number_of_parts_gives_the_same_bytes(tmp_path: Path, shards: int) -> None:
    alone, together = Store(tmp_path / "alone"), Store(tmp_path / "together")
    one, many = configuration(1), configuration(shards)
    whole = spread_out(alone, one, upstream(alone, one))
    parts = spread_out(together, many, upstream(together, many))
    assert parts.key == whole.key
    assert parts.facts == whole.facts
    assert content(parts) == content(whole)
    assert list((together.root / ".work").iterdir()) == []


def test_what_is_there_is_reused_and_made_again_by_force(tmp_path: Path) -> None:
    store, config = Store(tmp_path), configuration(3)
    made = upstream(store, config)
    first = spread_out(store, config, made)
    assert tokenize_parts.parts_to_do(config, store, made) == []
    assert tokenize_parts.join(config, store, made).reused
    assert tokenize_parts.parts_to_do(config, store, made, force=True) == [0, 1, 2]
    again = spread_out(store, config, made, force=True)
    assert not again.reused
    assert content(again) == content(first)


def test_a_finished_part_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, config = Store(tmp_path), configuration(3)
    made = upstream(store, config)
    tokenize_parts.tokenize_part(config, store, made, 0)

    def fails(*_: Any) -> None:
        raise RuntimeError("half way")

    with monkeypatch.context() as patch:
        patch.setattr("talaria.tokenization.stage.tokenize_range", fails)
        tokenize_parts.tokenize_part(config, store, made, 0)
        with pytest.raises(RuntimeError, match="half way"):
            tokenize_parts.tokenize_part(config, store, made, 1)
    for part in tokenize_parts.parts_to_do(config, store, made):
        tokenize_parts.tokenize_part(config, store, made, part)
    assert tokenize_parts.join(config, store, made).facts["rows"] == 200
