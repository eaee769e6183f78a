"""Rows by a chat template on several processes: the same bytes as on one, and errors that name the row."""

from __future__ import annotations

from pathlib import Path

import pytest
from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization import stage
from talaria.tokenization.parquet_chunks import RowRange
from talaria.tokenization.rendered import chunk_processes
from talaria.tokenization.stage import tokenize

from tests.support.conversations import user
from tests.support.tool_conversations import tool_rows, write_rows
from tests.tokenization.chat_templates import FAMILIES, write_tokenizer


def test_processes_write_the_bytes_of_one_and_name_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_processes, "AT_LEAST", 3)
    ranges = [RowRange(0, start, start + 20) for start in range(0, 100, 20)]
    monkeypatch.setattr(stage, "chunks_of", lambda *_: ranges)
    folder = write_tokenizer(FAMILIES["llama"], tmp_path / "tokenizer")
    rows = tool_rows(100, parallel=False)
    rows[70] = {"messages": [user("No answer"), {"role": "assistant", "content": None}], "tools": None}
    parquet = write_rows(tmp_path / "messages.parquet", rows)
    facts = {}
    for workers in (1, 2):
        config = Tokenize(template="own", workers=workers, on_bad_row="drop")
        facts[workers] = tokenize(parquet, folder, tmp_path / f"by {workers}", config)
    assert facts[1] == facts[2]
    shard = "data-00000-of-00001.arrow"
    assert (tmp_path / "by 1" / shard).read_bytes() == (tmp_path / "by 2" / shard).read_bytes()
    share = chunk_processes.Share(parquet, folder, Tokenize(template="own"), 100, None, ranges[2:])
    with (
        chunk_processes.Workers(folder, "auto", 1) as workers,
        pytest.raises(DataError, match=r"messages.parquet, row 70: message 1 has no content"),
    ):
        list(workers.encoded(share))
