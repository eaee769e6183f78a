"""Causal attention inside each of the conversations laid end to end in a micro-batch.

Registered with transformers' AttentionInterface under NAME, so that Hugging Face layers of any family use it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "talaria_varlen"


def plain_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Reference in plain PyTorch: one causal attention a conversation, so nothing can leak between them.

    q: [T, heads, d]; k, v: [T, kv_heads, d]; cu_seqlens: int32[n + 1]. Returns [T, heads, d].
    """
    grouped = q.shape[1] != k.shape[1]
    parts = []
    for start, end in pairwise(cu_seqlens.tolist()):
        if start == end:
            continue
        q1, k1, v1 = (t[start:end].transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        out = scaled_dot_product_attention(q1, k1, v1, is_causal=True, scale=scale, enable_gqa=grouped)
        parts.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(parts) if parts else q * 0


def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> Tensor:
    """Causal attention inside each conversation, by the fastest kernel there is (shapes as in plain_varlen)."""
    if not q.is_cuda or q.dtype == torch.float32:
        return plain_varlen(q, k, v, cu_seqlens, scale)
    from torch.nn.attention.varlen import varlen_attn

    grouped = q.shape[1] != k.shape[1]
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    out: Tensor = varlen_attn(q, k, v, *lengths, scale=scale, window_size=(-1, 0), enable_gqa=grouped)
    return out


def interface(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' layers call. query: [1, heads, T, d]; returns [1, T, heads, d]."""
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return varlen(q, k, v, cu_seq_lens_q, max_length_q, scaling).unsqueeze(0), None


def register() -> str:
    """Make the attention known to transformers and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, interface)
    return NAME
