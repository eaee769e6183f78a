"""SwiGLU and its derivative."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < WIDTH
    gate = tl.load(gate_up_ptr + row * (2 * WIDTH) + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, inside, 0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + col, gate * tl.sigmoid(gate) * up, inside)


def swiglu(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        _swiglu_kernel[(rows, triton.cdiv(width, 2048))](gate_up, out, WIDTH=width, BLOCK=2048, num_warps=8)
    return out


@triton.jit
def _swiglu_backward_kernel(gate_up_ptr, grad_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AGAIN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < WIDTH
    gate = tl.load(gate_up_ptr + row * (2 * WIDTH) + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, inside, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
    sig = tl.sigmoid(gate)
    silu = gate * sig
    tl.store(gate_up_ptr + row * (2 * WIDTH) + col, grad * up * (sig + silu * (1 - sig)), inside)
    tl.store(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, grad * silu, inside)
    if AGAIN:
        tl.store(grad_ptr + row * WIDTH + col, silu * up, inside)


def swiglu_backward_(gate_up: Tensor, grad: Tensor, again: bool) -> None:
    rows, width = grad.shape
    if rows:
        grid = (rows, triton.cdiv(width, 2048))
        _swiglu_backward_kernel[grid](gate_up, grad, WIDTH=width, BLOCK=2048, AGAIN=again, num_warps=8)
