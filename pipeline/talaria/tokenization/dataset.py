"""The tokens folder: Arrow stream shards that `datasets.load_from_disk` opens as they are (made by arrow_writer.py), and a reader
for the trainer.

    tokens/                         a DatasetDict where validation rows are held out, else one data set
      dataset_dict.json
      train/  data-00000-of-00011.arrow ...  state.json  dataset_info.json
      validation/ ...
      sources.json                  of a mixture
      tokenizer/
      manifest.json

Reading needs numpy and pyarrow only: shards are memory-mapped, and a batch is gathered into flat arrays without a Python
object per token.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from talaria.common.arrow import to_numpy
from talaria.common.errors import DataError
from talaria.common.files import digest, file_digest
from talaria.data.mixture_layout import MixtureLayout

TRAIN, VALIDATION = "train", "validation"
SOURCES = "sources.json"
"""Of a mixture: which rows come from which source (talaria.data.mixture_layout)."""

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Stretch:
    """A record batch of a memory-mapped shard, as numpy views."""

    ids: Int32
    bits: npt.NDArray[np.uint8]
    """The mask, eight tokens a byte, lowest bit first."""
    bit: int
    """Place of the mask's first token in `bits`."""
    offsets: Int32
    rows: Int64

    def mask(self, start: int, stop: int) -> Bool:
        first, last = self.bit + start, self.bit + stop
        bits = np.unpackbits(self.bits[first >> 3 : (last + 7) >> 3], bitorder="little")
        return bits[first & 7 : (first & 7) + stop - start].view(np.bool_)

    def first_supervised(self) -> Int32:
        """int32[rows]: 1 where a conversation begins with a supervised token."""
        first = np.zeros(len(self.rows), np.int32)
        held = np.flatnonzero(np.diff(self.offsets))
        at = self.bit + self.offsets[held].astype(np.int64)
        first[held] = (self.bits[at >> 3] >> (at & 7).astype(np.uint8)) & 1
        return first


class Tokens:
    """The conversations of one split, by index, memory-mapped."""

    def __init__(self, stretches: Sequence[_Stretch], layout: MixtureLayout | None = None) -> None:
        self._stretches = stretches
        self.layout = layout
        counts = [len(stretch.rows) for stretch in stretches]
        self._stretch = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._start = _join([stretch.offsets[:-1] for stretch in stretches], np.int32)
        self.lengths: Int32 = _join([np.diff(stretch.offsets) for stretch in stretches], np.int32)
        """int32[n]: tokens of each conversation."""
        self.rows: Int64 = _join([stretch.rows for stretch in stretches], np.int64)
        """int64[n]: each conversation's row in the messages parquet, rising."""

    def __len__(self) -> int:
        return len(self.lengths)

    def subset(self, indices: npt.NDArray[np.int64]) -> Tokens:
        """The conversations of `indices` alone, in that order, of the same shards."""
        part = copy.copy(self)
        part._stretch, part._start = self._stretch[indices], self._start[indices]
        part.lengths, part.rows = self.lengths[indices], self.rows[indices]
        part.supervised, part.targets = self.supervised[indices], self.targets[indices]
        part.layout = None
        return part

    @cached_property
    def by_source(self) -> dict[str, Tokens]:
        """The conversations of each source of a mixture; empty for data of a single one."""
        return {name: self.subset(places) for name, places in self.layout.by_source(self.rows)} if self.layout else {}

    @cached_property
    def supervised(self) -> Int32:
        """int32[n]: supervised tokens of each conversation. Reads every mask, about a second for a million conversations."""
        from talaria.tokenization.encoder import sums

        counts = [sums(part.mask(0, int(part.offsets[-1])), part.offsets.astype(np.int64)) for part in self._stretches]
        return _join(counts, np.int32)

    @cached_property
    def targets(self) -> Int32:
        """int32[n]: supervised tokens that training can predict; a conversation's first token has nothing before it."""
        targets: Int32 = self.supervised - _join([part.first_supervised() for part in self._stretches], np.int32)
        return targets

    def gather(self, indices: npt.ArrayLike) -> tuple[Int32, Bool, Int64]:
        """The conversations of `indices`, in that order, end to end.

        Returns ids int32[t], mask bool[t] (true: counts in the loss) and offsets int64[len(indices) + 1], all copies.
        """
        index = np.asarray(indices, np.int64)
        offsets = np.zeros(len(index) + 1, np.int64)
        np.cumsum(self.lengths[index], out=offsets[1:])
        ids, mask = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.bool_)
        starts = self._start[index]
        places = zip(self._stretch[index].tolist(), starts.tolist(), (starts + self.lengths[index]).tolist(), strict=True)
        for (stretch, start, stop), out in zip(places, offsets.tolist(), strict=False):
            source = self._stretches[stretch]
            ids[out : out + stop - start] = source.ids[start:stop]
            mask[out : out + stop - start] = source.mask(start, stop)
        return ids, mask, offsets


def open_tokens(folder: str | Path) -> dict[str, Tokens | None]:
    """{"train": Tokens, "validation": Tokens or None} of a tokens folder, with or without held-out rows.

    Raises DataError where the folder is not one.
    """
    folder = Path(folder)
    layout = None
    if (folder / SOURCES).is_file():
        layout = MixtureLayout.of_json(json.loads((folder / SOURCES).read_text(encoding="utf-8")))
    if (folder / "dataset_dict.json").is_file():
        held_out = open_split(folder / VALIDATION, layout)
        return {TRAIN: open_split(folder / TRAIN, layout), VALIDATION: held_out if len(held_out) else None}
    return {TRAIN: open_split(folder, layout), VALIDATION: None}


def open_split(folder: Path, layout: MixtureLayout | None = None) -> Tokens:
    """Memory-map the shards that state.json names."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder}: not a tokens folder (no state.json); make one with `talaria tokenize`.") from None
    stretches = [stretch for entry in state["_data_files"] for stretch in _map(folder / entry["filename"])]
    return Tokens(stretches, layout)


def _map(path: Path) -> list[_Stretch]:
    try:
        batches = list(pa.ipc.open_stream(pa.memory_map(str(path))))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot read this shard ({error}); make the folder again with `talaria tokenize`.") from error
    return [_views(batch, path) for batch in batches]


def _views(batch: pa.RecordBatch, path: Path) -> _Stretch:
    if not {"input_ids", "assistant_masks", "row"} <= set(batch.schema.names):
        raise DataError(f"{path}: has the columns {', '.join(batch.schema.names)}; expected input_ids, assistant_masks and row.")
    ids, masks = batch.column("input_ids"), batch.column("assistant_masks")
    if ids.type.value_type != pa.int32() or masks.type.value_type != pa.bool_():
        raise DataError(f"{path}: input_ids is {ids.type} and assistant_masks {masks.type}; expected list<int32> and list<bool>.")
    offsets = to_numpy(ids.offsets)
    if not np.array_equal(offsets, to_numpy(masks.offsets)):
        raise DataError(f"{path}: a mask is longer or shorter than its ids; make the folder again with `talaria tokenize`.")
    bits = masks.values.buffers()[1]
    return _Stretch(
        to_numpy(ids.values),
        np.frombuffer(bits, np.uint8) if bits is not None else np.empty(0, np.uint8),
        masks.values.offset,
        offsets,
        to_numpy(batch.column("row")),
    )


def _join(parts: Sequence[npt.NDArray[Any]], dtype: Any) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype, copy=False) if parts else np.empty(0, dtype)


def heldout_digest(tokens: str | Path) -> str | None:
    """Digest of the held-out conversations, equal where they are equal; None without a held-out split."""
    return _shards_digest(Path(tokens) / "validation")


def _shards_digest(folder: Path) -> str | None:
    shards = sorted(folder.glob("*.arrow"))
    return digest([file_digest(shard) for shard in shards]) if shards else None
