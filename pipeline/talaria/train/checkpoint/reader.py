"""Reading a checkpoint that any number of ranks wrote into the parts that this rank holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from talaria.train.checkpoint.staging import DTYPES, Part

_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_READERS = 4


@dataclass(frozen=True)
class Stored:
    """A stretch of a flattened tensor in a file: elements from `start` on."""

    path: Path
    dtype: torch.dtype
    start: int
    count: int
    at: int
    """Its first byte in the file."""

    @property
    def stop(self) -> int:
        return self.start + self.count

    def read(self, start: int, stop: int, target: Tensor) -> None:
        """Elements [start, stop) of the whole tensor into `target`."""
        offset = self.at + (start - self.start) * self.dtype.itemsize
        raw = np.fromfile(self.path, np.uint8, (stop - start) * self.dtype.itemsize, offset=offset)
        target.copy_(torch.from_numpy(raw).view(self.dtype))


def read(folder: Path, wanted: Iterable[tuple[Part, Tensor]]) -> None:
    """Fill each part's flat tensor. Raises ValueError, naming the tensor, where the files do not hold all of it.

    Part [4, 8) of a tensor that three ranks wrote as [0, 3), [3, 6), [6, 9) takes [4, 6) of the second and [6, 8) of the third.
    """
    stored = _index(folder)
    jobs = []
    for part, target in wanted:
        span, found = part.span, 0
        for piece in stored.get(part.name, []):
            start, stop = max(span.start, piece.start), min(span.stop, piece.stop)
            if start < stop:
                found += stop - start
                jobs.append((piece, start, stop, target[start - span.start : stop - span.start]))
        if found != span.count:
            raise ValueError(f"{folder.name} holds {found:,} of the {span.count:,} elements of {part.name} that this rank needs")
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(lambda job: job[0].read(*job[1:]), jobs))


def _index(folder: Path) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, piece in _header(path):
            found.setdefault(name, []).append(piece)
    return found


def _header(path: Path) -> Iterator[tuple[str, Stored]]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    starts = _starts(header.pop("__metadata__"), header)
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        dtype = _DTYPES[entry["dtype"]]
        yield name, Stored(path, dtype, starts[name], (end - begin) // dtype.itemsize, 8 + length + begin)


def _starts(metadata: dict[str, str], header: dict[str, Any]) -> dict[str, int]:
    """Name -> the first element in the flattened whole. Format 1 has the first row instead: rows follow each other in memory."""
    if "places" in metadata:
        starts: dict[str, int] = json.loads(metadata["places"])
        return starts
    rows = json.loads(metadata["DCP_SHARDING_INFO"])
    return {name: rows[name]["saved_offsets"][0] * math.prod(entry["shape"][1:]) for name, entry in header.items()}
