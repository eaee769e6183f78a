"""Causal attention inside each of the conversations laid end to end in a micro-batch, by the fastest kernel at hand.

q: [T, heads, d]; k, v: [T, kv_heads, d] (may be strided over T); cu_seqlens: int32[n + 1]. Kernels differ in speed only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

NAME = "talaria_varlen"
"""Under which transformers' AttentionInterface knows it."""


@dataclass(frozen=True)
class Kernel:
    name: str
    forward: Callable[..., tuple[Tensor, Tensor]]
    """(q, k, v, cu_seqlens, max_seqlen, scale) -> (out [T, heads, d], log-sum-exp fp32[heads, T])"""
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """(d_out, q, k, v, out, log-sum-exp, cu_seqlens, max_seqlen, scale) -> (dq, dk, dv)"""


@dataclass(frozen=True)
class Packed:
    """Where conversations begin and end, and the kernel that minds it."""

    cu_seqlens: Tensor
    max_seqlen: int
    kernel: Kernel

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        return self.kernel.forward(q, k, v, self.cu_seqlens, self.max_seqlen, scale)

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.kernel.backward(d_out, q, k, v, out, lse, self.cu_seqlens, self.max_seqlen, scale)


def plain_varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Reference in plain PyTorch: one causal attention a conversation, so nothing can leak between them."""
    grouped = q.shape[1] != k.shape[1]
    parts = []
    for start, end in pairwise(cu_seqlens.tolist()):
        if start == end:
            continue
        q1, k1, v1 = (t[start:end].transpose(0, 1).unsqueeze(0) for t in (q, k, v))
        out = scaled_dot_product_attention(q1, k1, v1, is_causal=True, scale=scale, enable_gqa=grouped)
        parts.append(out.squeeze(0).transpose(0, 1))
    return torch.cat(parts) if parts else q * 0


def _plain_forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        out = plain_varlen(q, k, v, cu_seqlens, scale)
    return out, torch.empty(q.shape[1], len(q), dtype=torch.float32, device=q.device)


def _plain_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        dq, dk, dv = torch.autograd.grad(plain_varlen(q, k, v, cu_seqlens, scale), (q, k, v), d_out)
    return dq, dk, dv


def _flash2_forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> tuple[Tensor, Tensor]:
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *lengths, 0.0, True, False, scale=scale)
    return out, lse


def _flash2_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = cu_seqlens, cu_seqlens, max_seqlen, max_seqlen
    unused = torch.empty(2, dtype=torch.uint64, device=q.device)  # the state of dropout's generator
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        d_out, q, k, v, out, lse, *lengths, 0.0, True, unused, unused, scale=scale
    )
    return dq, dk, dv


def _flash4_forward(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> tuple[Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_fwd

    lengths = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    out, lse, *_ = _flash_attn_fwd(q, k, v, **lengths, softmax_scale=scale, causal=True, return_lse=True)
    return out, lse


def _flash4_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    lengths = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens, "max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
    dq, dk, dv, *_ = _flash_attn_bwd(q, k, v, out, d_out, lse, softmax_scale=scale, causal=True, **lengths)
    return dq, dk, dv


PLAIN = Kernel("plain PyTorch", _plain_forward, _plain_backward)
FLASH2 = Kernel("FlashAttention-2 (torch)", _flash2_forward, _flash2_backward)
FLASH4 = Kernel("FlashAttention-4 (flash-attn-4)", _flash4_forward, _flash4_backward)


def _has_flash4() -> bool:
    return find_spec("flash_attn") is not None and find_spec("flash_attn.cute") is not None


@cache
def choose(device_type: str, dtype: torch.dtype, head_width: int) -> tuple[Kernel, str]:
    """The kernel for such tensors, and why."""
    if device_type != "cuda":
        return PLAIN, "no GPU"
    if dtype not in (torch.bfloat16, torch.float16):
        return PLAIN, f"{str(dtype).removeprefix('torch.')} is outside the fused kernels"
    if torch.cuda.get_device_capability() >= (9, 0) and head_width in (64, 128) and _has_flash4():
        return FLASH4, "installed, and the GPU is a Hopper or newer"
    return FLASH2, "flash-attn-4 is not installed or not for this GPU"


@torch.library.custom_op("talaria::varlen", mutates_args=())
def varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> tuple[Tensor, Tensor]:
    """(out, log-sum-exp) of a fused kernel, differentiable by q, k and v, opaque to torch.compile."""
    return choose(q.device.type, q.dtype, q.shape[-1])[0].forward(q, k, v, cu_seqlens, max_seqlen, scale)


@torch.library.custom_op("talaria::varlen_backward", mutates_args=())
def varlen_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    kernel = choose(q.device.type, q.dtype, q.shape[-1])[0]
    grads = kernel.backward(d_out.contiguous(), q, k, v, out, lse, cu_seqlens, max_seqlen, scale)
    dq, dk, dv = (grad.contiguous() for grad in grads)
    return dq, dk, dv


@varlen.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@varlen_backward.register_fake
def _(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = torch.ops.talaria.varlen_backward(d_out, *ctx.saved_tensors, ctx.max_seqlen, ctx.scale)
    return *grads, None, None, None


varlen.register_autograd(_differentiate, setup_context=_keep)


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
    """What transformers' own layers call. query: [1, heads, T, d]; returns [1, T, heads, d]."""
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if choose(q.device.type, q.dtype, q.shape[-1])[0] is PLAIN:
        out = plain_varlen(q, k, v, cu_seq_lens_q, scaling)
    else:
        out, _lse = torch.ops.talaria.varlen(q, k, v, cu_seq_lens_q, max_length_q, scaling)
    return out.unsqueeze(0), None


def register() -> str:
    """Make the attention known to transformers and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, interface)
    return NAME
