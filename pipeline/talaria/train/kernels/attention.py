"""Causal attention, of all tokens before or of a sliding window, inside each of the conversations laid end to end in a
micro-batch, by the fastest kernel at hand.

q: [T, heads, d]; k, v: [T, kv_heads, d] (may be strided over T); cu_seqlens: int32[n + 1]. Kernels differ in speed only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from talaria.train.kernels import cudnn_attention as attention_cudnn
from talaria.train.kernels.plain_attention import Padding, padded_varlen, paddings, plain_varlen
from talaria.train.kernels.torch_internals import flash_backward, flash_forward

NAME = "talaria_varlen"
"""Under which transformers' AttentionInterface knows it."""


MAX_SCRATCH_BYTES = 6 << 30
"""Of cuDNN's backward pass; beyond, FlashAttention-2 is taken, whose scratch memory grows with tokens alone."""


@dataclass(frozen=True)
class Kernel:
    name: str
    forward: Callable[[Tensor, Tensor, Tensor, PackedSequences, float, int | None], tuple[Tensor, Tensor]]
    """(q, k, v, packed, scale, window) -> (out [T, heads, d], log-sum-exp fp32[heads, T], or [T, heads] where `lse_by_token`)"""
    backward: Callable[
        [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, PackedSequences, float, int | None], tuple[Tensor, Tensor, Tensor]
    ]
    """(d_out, q, k, v, out, log-sum-exp, packed, scale, window) -> (dq, dk, dv)"""
    lse_by_token: bool = False


@dataclass(frozen=True)
class PackedSequences:
    """Where conversations begin and end, and the kernel that minds it."""

    cu_seqlens: Tensor
    max_seqlen: int
    kernel: Kernel

    @cached_property
    def offsets(self) -> attention_cudnn.PackedOffsets:
        return attention_cudnn.PackedOffsets.of(self.cu_seqlens, self.max_seqlen)

    @cached_property
    def paddings(self) -> tuple[list[Padding], Tensor]:
        return paddings(self.cu_seqlens)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None = None) -> tuple[Tensor, Tensor]:
        return self.kernel.forward(q, k, v, self, scale, self._reached(window))

    def backward(
        self, d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, window: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.kernel.backward(d_out, q, k, v, out, lse, self, scale, self._reached(window))

    def _reached(self, window: int | None) -> int | None:
        """Drop a window as long as the longest conversation, which changes nothing."""
        return None if window is None or window >= self.max_seqlen else window


def _plain_forward(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        out = _plain(q, k, v, packed, scale, window)
    return out, torch.empty(q.shape[1], len(q), dtype=torch.float32, device=q.device)


def _plain_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    packed: PackedSequences,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        dq, dk, dv = torch.autograd.grad(_plain(q, k, v, packed, scale, window), (q, k, v), d_out)
    return dq, dk, dv


def _plain(q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences, scale: float, window: int | None) -> Tensor:
    if q.is_cuda:
        return padded_varlen(q, k, v, packed.paddings, scale, window)
    return plain_varlen(q, k, v, packed.cu_seqlens, scale, window)


def _flash_forward(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    return flash_forward(q, k, v, packed.cu_seqlens, packed.max_seqlen, scale, window)


def _flash_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    packed: PackedSequences,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return flash_backward(d_out, q, k, v, out, lse, packed.cu_seqlens, packed.max_seqlen, scale, window)


def _fixed_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    packed: PackedSequences,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum in one order, always. torch has no argument for it, only a global switch that the kernel reads when launched.

    With warn_only the kernel would warn, once, and add up in any order.
    """
    before, only_warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return _flash_backward(d_out, q, k, v, out, lse, packed, scale, window)
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


def _cudnn_forward(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    return attention_cudnn.forward(q, k, v, packed.offsets, scale, window)


def _cudnn_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    packed: PackedSequences,
    scale: float,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return attention_cudnn.backward(d_out, q, k, v, out, lse, packed.offsets, scale, window)


PLAIN = Kernel("plain PyTorch", _plain_forward, _plain_backward)
FLASH = Kernel("torch's FlashAttention-2", _flash_forward, _flash_backward)
FIXED = Kernel("torch's FlashAttention-2 in a fixed order", _flash_forward, _fixed_backward)
CUDNN = Kernel("cuDNN", _cudnn_forward, _cudnn_backward, lse_by_token=True)


@cache
def choose(device_type: str, dtype: torch.dtype, head_width: int, deterministic: bool = False) -> tuple[Kernel, str]:
    """The kernel for such tensors, and why."""
    if device_type != "cuda":
        return PLAIN, "no GPU"
    if dtype != torch.bfloat16:
        return PLAIN, f"{str(dtype).removeprefix('torch.')} is outside the fused kernels"
    if deterministic:
        return FIXED, "train.deterministic is set"
    if torch.cuda.get_device_capability() < (9, 0):
        return FLASH, "the GPU is older than Hopper"
    if find_spec("cudnn") is None:
        return FLASH, "nvidia-cudnn-frontend is not installed"
    if fault := attention_cudnn.fault(head_width, torch.device("cuda", torch.cuda.current_device())):
        return FLASH, f"cuDNN cannot: {fault}"
    return CUDNN, "installed, and the GPU is a Hopper or newer"


def pack(cu_seqlens: Tensor, max_seqlen: int, kernel: Kernel, features: int) -> PackedSequences:
    """Choose anew for one micro-batch: few long conversations among many short ones would cost cuDNN too much scratch memory.

    features: heads * d.
    """
    if kernel is CUDNN and attention_cudnn.scratch_bytes(len(cu_seqlens) - 1, max_seqlen, features) > MAX_SCRATCH_BYTES:
        kernel = FLASH
    return PackedSequences(cu_seqlens, max_seqlen, kernel)


def build_ahead(count: int, longest: int, features: int) -> None:
    """Build now, in whichever thread, what `pack` would choose for such a micro-batch, instead of when it comes."""
    if attention_cudnn.scratch_bytes(count, longest, features) <= MAX_SCRATCH_BYTES:
        attention_cudnn.build_ahead(count, longest)


@torch.library.custom_op("talaria::varlen", mutates_args=())
def varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, window: int | None, deterministic: bool
) -> tuple[Tensor, Tensor]:
    """(out, log-sum-exp) of a fused kernel, differentiable by q, k and v, opaque to torch.compile."""
    kernel, _ = choose(q.device.type, q.dtype, q.shape[-1], deterministic)
    q, k, v = (_dense(t) for t in (q, k, v))
    return PackedSequences(cu_seqlens, max_seqlen, kernel).forward(q, k, v, scale, window)


@torch.library.custom_op("talaria::varlen_backward", mutates_args=())
def varlen_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernel, _ = choose(q.device.type, q.dtype, q.shape[-1], deterministic)
    d_out, q, k, v = (_dense(t) for t in (d_out, q, k, v))
    dq, dk, dv = PackedSequences(cu_seqlens, max_seqlen, kernel).backward(d_out, q, k, v, out, lse, scale, window)
    return dq, dk, dv


def _dense(t: Tensor) -> Tensor:
    """Heads side by side, whatever lies between tokens."""
    return t if t.stride()[1:] == (t.shape[2], 1) else t.contiguous()


@varlen.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float, window: int | None, deterministic: bool
) -> tuple[Tensor, Tensor]:
    by_token = choose(q.device.type, q.dtype, q.shape[-1], deterministic)[0].lse_by_token
    return q.new_empty(q.shape), q.new_empty(q.shape[:2] if by_token else q.shape[:2][::-1], dtype=torch.float32)


@varlen_backward.register_fake
def _(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float,
    window: int | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *ctx.how = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _differentiate(ctx: Any, d_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = torch.ops.talaria.varlen_backward(d_out, *ctx.saved_tensors, *ctx.how)
    return *grads, *[None] * 5


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
    sliding_window: int | None = None,
    deterministic: bool = False,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' own layers call. query: [1, heads, T, d]; returns [1, T, heads, d]."""
    assert softcap is None, "base_model/families.py refuses capped scores"
    assert s_aux is None, "and attention sinks"
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    if choose(q.device.type, q.dtype, q.shape[-1], deterministic)[0] is PLAIN:
        out = _plain(q, k, v, PackedSequences(cu_seq_lens_q, max_length_q, PLAIN), scaling, sliding_window)
    else:
        out, _lse = torch.ops.talaria.varlen(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window, deterministic)
    return out.unsqueeze(0), None


def register() -> str:
    """Make the attention known to transformers and return its name."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, interface)
    return NAME
