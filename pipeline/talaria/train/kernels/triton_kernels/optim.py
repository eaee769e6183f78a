"""AdamW, in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["salt", "start"])  # a count known to be a multiple of 16 lets it load 16 bytes at a time
def _adamw_kernel(
    param_ptr,
    low_ptr,
    grad_ptr,
    m_ptr,
    v_ptr,
    count,
    scale,
    keep,
    step_size,
    root_correction,
    beta1,
    beta2,
    eps,
    salt,
    start,
    HALF: tl.constexpr,
    LOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    master = tl.load(param_ptr + at, inside, 0)
    if HALF:
        bits = master.to(tl.int32) << 16
        if LOW:
            bits += tl.load(low_ptr + at, inside, 0).to(tl.int32)
        master = bits.to(tl.float32, bitcast=True)
    g = tl.load(grad_ptr + at, inside, 0.0).to(tl.float32) * scale
    m = tl.load(m_ptr + at, inside, 0.0).to(tl.float32)
    m += (g - m) * (1 - beta1)
    v = tl.load(v_ptr + at, inside, 0.0).to(tl.float32) * beta2 + g * g * (1 - beta2)
    master = master * keep - step_size * m / (tl.sqrt(v) / root_correction + eps)
    tl.store(m_ptr + at, m, inside)
    tl.store(v_ptr + at, v, inside)
    if HALF:
        bits = master.to(tl.int32, bitcast=True)
        if LOW:
            high = (bits + 0x8000) >> 16
            tl.store(low_ptr + at, (bits - (high << 16)).to(tl.int16), inside)
        else:
            noise = (at + start).to(tl.uint32) * 747796405 + salt.to(tl.uint32)
            noise = (noise ^ (noise >> 16)) * 0x45D9F3B
            noise = (noise ^ (noise >> 16)) * 0x45D9F3B
            noise = (noise ^ (noise >> 16)) & 0xFFFF
            high = (bits + noise.to(tl.int32)) >> 16
        tl.store(param_ptr + at, high.to(tl.int16), inside)
    else:
        tl.store(param_ptr + at, master, inside)


def adamw_(
    param: Tensor, low: Tensor | None, grad: Tensor, m: Tensor, v: Tensor, scalars: tuple[float, ...], start: int = 0
) -> None:
    """optim.update of a flat piece; `scalars` are optim.AdamWScalars; `start`: where in its parameter the piece begins."""
    half = param.dtype == torch.bfloat16
    stored = param.view(torch.int16) if half else param
    count = param.numel()
    if count:
        _adamw_kernel[(triton.cdiv(count, 2048),)](
            stored, low, grad, m, v, count, *scalars, start, HALF=half, LOW=low is not None, BLOCK=2048, num_warps=8
        )
