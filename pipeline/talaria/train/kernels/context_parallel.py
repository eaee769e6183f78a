"""Attention over a conversation whose tokens lie on several ranks: all-to-all over heads (Ulysses: Jacobs et al., 2023).

A rank has a stretch of a micro-batch's tokens for all that is computed token by token. For attention it swaps it for all tokens
of its share of the heads, and swaps back: each head then attends to whole conversations, by the same kernel as on one rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from talaria.train.kernels.attention import PackedSequences


@dataclass(frozen=True)
class ContextGroup:
    """The ranks that share a micro-batch's tokens, in order: this one is the `rank`th (from 0) of `size`."""

    rank: int = 0
    size: int = 1
    process_group: Any = None

    def to_heads(self, x: Tensor, tokens: tuple[int, ...]) -> Tensor:
        """[this rank's tokens, heads, d] to [all tokens, this rank's heads, d]; tokens: how many each rank has."""
        if x.shape[1] < self.size:  # keys and values have fewer heads than there are ranks: several get the same one
            x = x.repeat_interleave(self.size // x.shape[1], dim=1)
        own, heads, width = x.shape
        share = heads // self.size
        sent = x.reshape(own, self.size, share, width).transpose(0, 1).contiguous()
        out = x.new_empty(sum(tokens), share, width)
        return self._exchange(out, sent.flatten(0, 1), list(tokens), [own] * self.size)

    def to_tokens(self, x: Tensor, heads: int, tokens: tuple[int, ...]) -> Tensor:
        """Undo `to_heads` for so many heads; what comes of copies of a head is added up."""
        _, share, width = x.shape
        own = tokens[self.rank]
        out = x.new_empty(self.size * own, share, width)
        self._exchange(out, x.contiguous(), [own] * self.size, list(tokens))
        copies = out.view(self.size, own, share, width).transpose(0, 1).reshape(own, heads, self.size * share // heads, width)
        return copies.squeeze(2) if copies.shape[2] == 1 else copies.float().sum(2).to(x.dtype)

    def least(self, value: int, device: torch.device) -> int:
        """Return the least of the ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value, device=device)
        dist.all_reduce(found, dist.ReduceOp.MIN, group=self.process_group)
        return int(found)

    def _exchange(self, out: Tensor, sent: Tensor, received_rows: list[int], sent_rows: list[int]) -> Tensor:
        dist.all_to_all_single(out, sent, received_rows, sent_rows, group=self.process_group)
        return out


@dataclass(frozen=True)
class SpreadSequences(PackedSequences):
    """Packed conversations of which each rank of `context` has a stretch: `tokens` each. cu_seqlens tells of the whole."""

    context: ContextGroup = ContextGroup()
    tokens: tuple[int, ...] = ()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None) -> tuple[Tensor, Tensor]:
        heads = q.shape[1]
        q, k, v = self._to_heads(q, k, v)
        out, lse = super().forward(q, k, v, scale, window)
        return self.context.to_tokens(out, heads, self.tokens), lse

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, window: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        heads = q.shape[1], k.shape[1], v.shape[1]
        d_out, q, k, v, out = self._to_heads(d_out, q, k, v, out)
        grads = zip(super().backward(d_out, q, k, v, out, lse, scale, window), heads, strict=True)
        return tuple(self.context.to_tokens(grad, count, self.tokens) for grad, count in grads)  # type: ignore[return-value]

    def _to_heads(self, *parts: Tensor) -> list[Tensor]:
        return [self.context.to_heads(part, self.tokens) for part in parts]


def context_group(rank: int, ranks: int, size: int) -> ContextGroup:
    """Return this rank's group of `size` neighbours. Collective: every rank makes every group."""
    if size == 1:
        return ContextGroup()
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, ranks, size)]
    return ContextGroup(rank % size, size, groups[rank // size])
