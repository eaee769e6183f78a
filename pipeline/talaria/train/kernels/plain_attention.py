"""Attention inside packed conversations in plain PyTorch: where there is no GPU, and in fp32, which fused kernels do not take.

Shapes are those of attention.py.
"""

from __future__ import annotations

from itertools import pairwise

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


def padded_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float, window: int | None = None) -> Tensor:
    """Compute the same with few launches, for a GPU: conversations of like length are padded to the longest of them.

    What is appended comes after every token of a conversation, so causal attention does not see it.
    """
    groups: dict[int, list[tuple[int, int]]] = {}
    for start, end in pairwise(cu_seqlens.tolist()):
        if start < end:
            groups.setdefault((end - start).bit_length(), []).append((start, end - start))
    out = q * 0
    for group in groups.values():
        starts, lengths = torch.tensor(group, device=q.device).unbind(1)
        longest = max(length for _, length in group)
        places = torch.arange(longest, device=q.device)
        inside = places < lengths[:, None]
        rows = torch.where(inside, starts[:, None] + places, starts[:, None])
        q1, k1, v1 = (t[rows].transpose(1, 2) for t in (q, k, v))
        near = None if window is None else _band(longest, window, q.device)
        grouped = q.shape[1] != k.shape[1]
        padded = scaled_dot_product_attention(q1, k1, v1, attn_mask=near, is_causal=near is None, scale=scale, enable_gqa=grouped)
        out = out.index_put((rows[inside],), padded.transpose(1, 2)[inside])
    return out


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """bool[length, length]: which keys (columns) a query (row) attends to."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)
