"""Attention inside packed conversations in plain PyTorch: where there is no GPU, and in fp32, which fused kernels do not take.

Shapes are those of attention.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def plain_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Reference in plain PyTorch: one causal attention a conversation, so nothing can leak between them.

    `window`: the most tokens, itself among them, that a token attends to.
    """
    grouped = q.shape[1] != k.shape[1]
    parts = []
    for start, end in pairwise(cu_seqlens.tolist()):
        if start == end:
            continue
        q1, k1, v1 = (t[start:end].transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        near = None if window is None else _band(end - start, window, q.device)
        out = scaled_dot_product_attention(q1, k1, v1, attn_mask=near, is_causal=near is None, scale=scale, enable_gqa=grouped)
        parts.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(parts) if parts else q * 0


class Padding(NamedTuple):
    """Conversations of like length, padded to the longest of them, and which of the padded places are whose."""

    rows: Tensor
    """int64[n * longest]: the token of each place; beyond a conversation's end its first, which no other token then sees."""
    longest: int
    inside: Tensor
    """int64[m]: the places that are not beyond an end."""


def paddings(cu_seqlens: Tensor) -> tuple[list[Padding], Tensor]:
    """Return the groups of a micro-batch, and int64[T]: where each token is, once what is inside the groups is laid end to end.

    Waits for the GPU once. A micro-batch's layers share it: to look for the places in each of them would be a wait each.
    """
    groups: dict[int, list[tuple[int, int]]] = {}
    for start, end in pairwise(cu_seqlens.tolist()):
        if start < end:
            groups.setdefault((end - start).bit_length(), []).append((start, end - start))
    found, tokens = [], [torch.empty(0, dtype=torch.int64)]
    for group in groups.values():
        starts, lengths = torch.tensor(group).unbind(1)
        longest = int(lengths.max())
        places = torch.arange(longest)
        inside = places < lengths[:, None]
        rows = torch.where(inside, starts[:, None] + places, starts[:, None])
        tokens.append(rows[inside])
        flat = (rows.flatten(), inside.flatten().nonzero()[:, 0])
        rows, inside = (t.to(cu_seqlens.device) for t in flat)
        found.append(Padding(rows, longest, inside))
    return found, torch.cat(tokens).argsort().to(cu_seqlens.device)


def padded_varlen(
    q: Tensor, k: Tensor, v: Tensor, padded: tuple[Sequence[Padding], Tensor], scale: float, window: int | None = None
) -> Tensor:
    """Compute the same with few launches, for a GPU. padded: the micro-batch's `paddings`.

    What is appended comes after every token of a conversation, so causal attention does not see it.
    """
    grouped = q.shape[1] != k.shape[1]
    groups, places = padded
    parts = [q[:0]]
    for rows, longest, inside in groups:
        q1, k1, v1 = (t.index_select(0, rows).view(-1, longest, *t.shape[1:]).transpose(1, 2) for t in (q, k, v))
        near = None if window is None else _band(longest, window, q.device)
        out = scaled_dot_product_attention(q1, k1, v1, attn_mask=near, is_causal=near is None, scale=scale, enable_gqa=grouped)
        parts.append(out.transpose(1, 2).flatten(0, 1).index_select(0, inside))
    return torch.cat(parts).index_select(0, places)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """bool[length, length]: which keys (columns) a query (row) attends to."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)
