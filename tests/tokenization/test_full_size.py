"""Every row of a large data set: ids equal Hugging Face's on the rendered text, but for the rule's two exceptions, counted.

Takes minutes: set TALARIA_TEST_DATA to a folder of data sets that `talaria convert` reads, and run `pytest -m shared`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from talaria.config.data_settings import Convert, Tokenize
from talaria.data.convert import convert
from talaria.tokenization import chatml as chat
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.stage import tokenize
from tokenizers import Tokenizer as HuggingFaceTokenizer

from tests.support import qwen_tokenizer

FOLDER = os.environ.get("TALARIA_TEST_DATA")
FILES = sorted(Path(FOLDER).glob("*.json*")) if FOLDER else []
FILES = [file for file in FILES if not file.name.endswith(".manifest.json")]
CONTROL = re.compile(r"<\|(im_start|im_end|endoftext)\|>")
LINE_BREAK = re.compile(r"\s*[\r\n]")


@pytest.mark.shared
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not FILES, reason="TALARIA_TEST_DATA is not set")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_row(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "messages.parquet", Convert())
    facts = tokenize(
        tmp_path / "messages.parquet", qwen_tokenizer.tokenizer(), tmp_path / "tokens", Tokenize(max_tokens=1_000_000)
    )
    tokens = open_tokens(tmp_path / "tokens")["train"]
    assert tokens is not None
    hugging_face = HuggingFaceTokenizer.from_file(str(qwen_tokenizer.tokenizer() / "tokenizer.json"))
    index = control_rows = line_breaks = equal = 0
    row = 0
    for batch in pq.ParquetFile(tmp_path / "messages.parquet", pre_buffer=False).iter_batches(2000, columns=["messages"]):
        conversations = batch.column(0).to_pylist()
        expected = hugging_face.encode_batch_fast([chat.render(messages) for messages in conversations], add_special_tokens=False)
        for messages, encoding in zip(conversations, expected, strict=True):
            control = any(CONTROL.search(message["content"]) for message in messages)
            breaks = sum(m["role"] == "assistant" and bool(LINE_BREAK.match(m["content"])) for m in messages)
            control_rows += control
            line_breaks += breaks
            if index < len(tokens) and tokens.rows[index] == row:
                ids, mask, _ = tokens.gather([index])
                same = np.array_equal(ids, encoding.ids)
                assert same or control or breaks, f"{file.name}, row {row}"
                equal += same
                answers = "".join(m["content"] + "<|im_end|>\n" for m in messages if m["role"] == "assistant")
                text = hugging_face.decode(ids[mask].tolist(), skip_special_tokens=False)
                assert text == hugging_face.normalizer.normalize_str(answers), f"{file.name}, row {row}"
                index += 1
            row += 1
    assert row == facts["rows"]
    assert index == len(tokens) == facts["conversations"]["train"]
    assert control_rows == facts["oddities"]["control_token_text_rows"]
    assert line_breaks == facts["oddities"]["line_break_answers"]
    print(
        f"{file.name}: {row} rows, {index} kept, {equal} equal, {control_rows} with control text, {line_breaks} line breaks first"
    )
