"""Reading a tokens folder: flat arrays, equal to what datasets reads, with numpy and pyarrow alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from talaria.common.errors import DataError
from talaria.config.data_settings import Tokenize
from talaria.tokenization.dataset import Tokens, open_tokens
from talaria.tokenization.stage import tokenize

from tests.support.conversations import numbered, write_parquet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """Several shards and batches, both splits."""
    path = tmp_path_factory.mktemp("tokens")
    parquet = write_parquet(path / "messages.parquet", numbered(5000))
    tokenize(parquet, small_tokenizer, path / "tokens", Tokenize(shard_rows=4500, validation_fraction=0.1, max_tokens=400))
    return path / "tokens"


@pytest.fixture
def train(folder: Path) -> Tokens:
    tokens = open_tokens(folder)["train"]
    assert tokens is not None
    return tokens


def test_it_reads_what_datasets_reads(folder: Path) -> None:
    ours = open_tokens(folder)
    for name, theirs in datasets.load_from_disk(str(folder)).items():
        tokens = ours[name]
        assert tokens is not None
        columns = theirs.with_format("arrow")[:]
        ids, mask, offsets = tokens.gather(np.arange(len(tokens)))
        assert ids.tolist() == columns["input_ids"].combine_chunks().flatten().to_pylist()
        assert mask.tolist() == columns["assistant_masks"].combine_chunks().flatten().to_pylist()
        assert tokens.rows.tolist() == columns["row"].to_pylist()
        assert np.diff(offsets).tolist() == tokens.lengths.tolist() == [len(row) for row in columns["input_ids"].to_pylist()]
        assert tokens.supervised.tolist() == [sum(row) for row in columns["assistant_masks"].to_pylist()]


def test_gather_takes_any_order_and_repeats(train: Tokens) -> None:
    indices = [len(train) - 1, 0, 17, 17, 4200, 3]
    ids, mask, offsets = train.gather(indices)
    assert (ids.dtype, mask.dtype, offsets.dtype) == (np.int32, np.bool_, np.int64)
    for number, index in enumerate(indices):
        alone_ids, alone_mask, _ = train.gather([index])
        stretch = slice(offsets[number], offsets[number + 1])
        assert ids[stretch].tolist() == alone_ids.tolist()
        assert mask[stretch].tolist() == alone_mask.tolist()
        assert mask[stretch].sum() == train.supervised[index]


def test_gather_returns_copies(train: Tokens) -> None:
    ids, mask, _ = train.gather([5])
    before = ids.copy()
    ids[:] = 0
    mask[:] = False
    again, mask_again, _ = train.gather([5])
    assert again.tolist() == before.tolist()
    assert mask_again.any()


def test_gather_of_nothing(train: Tokens) -> None:
    ids, mask, offsets = train.gather([])
    assert (len(ids), len(mask), offsets.tolist()) == (0, 0, [0])


def test_an_index_past_the_end_is_an_error(train: Tokens) -> None:
    with pytest.raises(IndexError):
        train.gather([len(train)])


def test_reading_needs_numpy_and_pyarrow_only(folder: Path) -> None:
    script = f"""
import sys
from talaria.tokenization.dataset import open_tokens
tokens = open_tokens({str(folder)!r})["train"]
assert tokens.gather([1, 0])[0].size and tokens.supervised.any()
print([name for name in ("datasets", "polars", "torch", "pydantic", "tokenizers", "xxhash") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_folder_that_datasets_wrote_opens_too(folder: Path, train: Tokens, tmp_path: Path) -> None:
    data = datasets.load_from_disk(str(folder))["train"]
    data.save_to_disk(str(tmp_path / "saved"), num_shards=3)
    tokens = open_tokens(tmp_path / "saved")
    assert tokens["validation"] is None
    assert tokens["train"] is not None
    assert tokens["train"].gather([7, 3000])[0].tolist() == train.gather([7, 3000])[0].tolist()


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a tokens folder"):
        open_tokens(tmp_path)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(DataError, match="has the columns text; expected input_ids, assistant_masks and row"):
        open_tokens(tmp_path / "text")
    columns = {"ids": [[1]], "assistant_masks": [[True]], "row": [0]}
    datasets.Dataset.from_dict(columns).rename_column("ids", "input_ids").save_to_disk(str(tmp_path / "wide"))
    with pytest.raises(DataError, match=r"input_ids is list<item: int64>"):
        open_tokens(tmp_path / "wide")


def test_a_torn_shard_is_named(folder: Path, tmp_path: Path) -> None:
    name = "data-00000-of-00002.arrow"
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (tmp_path / name).write_bytes((folder / "train" / name).read_bytes()[:5000])
    with pytest.raises(DataError, match=rf"{name}: cannot read this shard"):
        open_tokens(tmp_path)
