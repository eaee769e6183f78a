"""A tokenizer that loads at once, for tests that are not about Qwen3's ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from talaria.base_model import random_init as scratch

from tests.support.conversations import HANDWRITTEN, numbered, write_parquet


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer folder: Qwen3's structure and control tokens, 400 tokens in all."""
    folder = tmp_path_factory.mktemp("tokenizer")
    parquet = write_parquet(folder / "messages.parquet", [*HANDWRITTEN.values(), *numbered(50)])
    scratch.train_tokenizer(parquet, 400, folder / "tokenizer")
    return folder / "tokenizer"
