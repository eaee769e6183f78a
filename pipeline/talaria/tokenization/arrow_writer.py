"""Writes the tokens folder that dataset.py shows and reads: the shards, and the files beside them that `datasets` wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from talaria.common.arrow import to_arrow

if TYPE_CHECKING:
    from talaria.tokenization.encoder import TokenBatch

FEATURES = {
    "input_ids": {"feature": {"dtype": "int32", "_type": "Value"}, "_type": "List"},
    "assistant_masks": {"feature": {"dtype": "bool", "_type": "Value"}, "_type": "List"},
    "row": {"dtype": "int64", "_type": "Value"},
}
SCHEMA = pa.schema(
    [("input_ids", pa.list_(pa.int32())), ("assistant_masks", pa.list_(pa.bool_())), ("row", pa.int64())],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)


@dataclass(frozen=True)
class Shard:
    """What is known of a written shard."""

    split: str
    number: int
    """Of the stretch of `tokenize.shard_rows` parquet rows that it holds; a stretch of which nothing is kept has no file."""
    file: str
    rows: int
    tokens: int
    supervised_tokens: int
    digest: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class ShardWriter:
    """Writes one shard into `folder`; the file appears with the first conversation. A context manager."""

    def __init__(self, folder: Path, split: str, number: int) -> None:
        import xxhash

        self.split, self.number = split, number
        self.path = folder / f"{split}-{number:05d}.arrow"
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._rows = self._tokens = self._supervised = 0
        self._digest = xxhash.xxh3_128()

    def write(self, batch: TokenBatch) -> None:
        if not len(batch):
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self.path), SCHEMA)
        offsets = to_arrow(batch.offsets.astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, to_arrow(batch.ids)),
            pa.ListArray.from_arrays(offsets, to_arrow(batch.mask)),
            to_arrow(batch.rows),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
        for part in (batch.offsets, batch.ids, batch.mask, batch.rows):
            self._digest.update(np.ascontiguousarray(part).data)
        self._rows += len(batch)
        self._tokens += len(batch.ids)
        self._supervised += int(batch.supervised.sum())

    def close(self) -> Shard | None:
        """What was written, or None where nothing was."""
        if self._writer is None:
            return None
        self._writer.close()
        self._writer = None
        digest = self._digest.hexdigest()
        return Shard(self.split, self.number, self.path.name, self._rows, self._tokens, self._supervised, digest)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def write_empty(path: Path) -> None:
    """A shard with no conversation: datasets cannot open a split that has no shard at all."""
    pa.ipc.new_stream(str(path), SCHEMA).close()


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """The two files beside the shards that make a folder a Hugging Face data set."""
    from talaria.common.files import digest

    count = max(len(shards), 1)
    names = [shard_name(number, count) for number in range(count)]
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": digest([shard.digest for shard in shards])[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    info = {"citation": "", "description": "", "features": FEATURES, "homepage": "", "license": ""}
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")
    (folder / "dataset_info.json").write_text(json.dumps(info, indent=2), encoding="utf-8")


def shard_name(number: int, count: int) -> str:
    return f"data-{number:05d}-of-{count:05d}.arrow"
