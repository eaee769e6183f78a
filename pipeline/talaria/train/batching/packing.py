"""A micro-batch: conversations concatenated without padding.

Hidden state `positions[j]` (an index into the T packed tokens) predicts `targets[j]`; only supervised targets are listed, so
nothing downstream ever looks at an unsupervised position. A conversation's first token has no predecessor and is never a target.

Two conversations, 10 11 12 (supervised from 11 on) and 20 21 (both supervised): input_ids 10 11 12 20 21, position_ids
0 1 2 0 1, cu_seqlens 0 3 5. Positions 0, 1, 3 predict the targets 11, 12, 21; 20 is no target, as nothing precedes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    input_ids: Tensor
    """int64[T]"""
    position_ids: Tensor
    """int64[T], restarting at 0 with each conversation"""
    cu_seqlens: Tensor
    """int32[n + 1], where conversations begin and end"""
    max_seqlen: int
    """The longest conversation, perhaps rounded up a little so that kernels see few different values."""
    positions: Tensor
    """int64[S], ascending indices into T of the hidden states that predict a supervised target"""
    targets: Tensor
    """int64[S]"""
    weights: Tensor | None
    """float32[S], or None where each target weighs 1"""
    rows: npt.NDArray[np.int64]
    """int64[n], rows of the parquet; stays on the host"""
    sources: Tensor | None = None
    """int64[S], each target's source in a mixture; None for data of a single one"""
    spread: tuple[int, ...] = ()
    """Where ranks share the tokens: how many each of them has. T and S are then this rank's; cu_seqlens tells of all."""

    def part(self, rank: int, ranks: int) -> MicroBatch:
        """Return what the `rank`th (from 0) of so many ranks has of the tokens; rows are the first one's to count."""
        edges = [len(self.input_ids) * number // ranks for number in range(ranks + 1)]
        start, stop = edges[rank], edges[rank + 1]
        here = (self.positions >= start) & (self.positions < stop)
        return replace(
            self,
            input_ids=self.input_ids[start:stop],
            position_ids=self.position_ids[start:stop],
            positions=self.positions[here] - start,
            targets=self.targets[here],
            weights=None if self.weights is None else self.weights[here],
            rows=self.rows if rank == 0 else self.rows[:0],
            sources=None if self.sources is None else self.sources[here],
            spread=tuple(np.diff(edges).tolist()),
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MicroBatch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin(self) -> MicroBatch:
        """Copy the batch to page-locked memory, from which copies to a GPU overlap with its work."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self.tensors().items()}
        return replace(self, **changed)

    def tensors(self) -> dict[str, Tensor]:
        named = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "cu_seqlens": self.cu_seqlens,
            "positions": self.positions,
            "targets": self.targets,
            "weights": self.weights,
            "sources": self.sources,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def pack(
    input_ids: npt.NDArray[np.int32],
    supervised: npt.NDArray[np.bool_],
    lengths: Sequence[int] | npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    *,
    per_sample: bool = False,
    sources: npt.NDArray[np.int64] | None = None,
) -> MicroBatch:
    """Build a micro-batch on the host from conversations that are already concatenated.

    input_ids, supervised: [T]; lengths, rows, sources: [n], with sum(lengths) == T.
    `per_sample` gives each conversation the same weight in the sum: its targets weigh 1 / (their number).
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    edges = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=edges[1:])
    starts = np.repeat(edges[:-1], lengths)
    is_target = supervised.astype(bool, copy=True)
    is_target[edges[:-1][lengths > 0]] = False
    target_at = np.flatnonzero(is_target)
    weights = None
    owner = np.searchsorted(edges, target_at, side="right") - 1 if per_sample or sources is not None else target_at
    if per_sample:
        weights = torch.from_numpy((1.0 / np.bincount(owner, minlength=len(lengths))[owner]).astype(np.float32))
    ids = input_ids.astype(np.int64)
    return MicroBatch(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(np.arange(len(ids), dtype=np.int64) - starts),
        cu_seqlens=torch.from_numpy(edges.astype(np.int32)),
        max_seqlen=int(lengths.max(initial=0)),
        positions=torch.from_numpy(target_at - 1),
        targets=torch.from_numpy(ids[target_at]),
        weights=weights,
        rows=np.asarray(rows, dtype=np.int64),
        sources=None if sources is None else torch.from_numpy(sources[owner]),
    )
