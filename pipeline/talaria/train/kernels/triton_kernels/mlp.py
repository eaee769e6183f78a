"""SwiGLU and its derivative. Where 8 bits are wanted a program takes a whole row, twice: for its scale, and to round it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher
from talaria.train.kernels.operand import Form, Operand
from talaria.train.kernels.triton_kernels.fp8 import empty_rounded, scale_of

_BLOCK = 2048
_ROW_BLOCK, _ROW_WARPS = 2048, 16
"""Many warps a row, so that few rows are under way and the second look at one finds it in the cache."""


@triton.jit
def _swiglu(gate_up_ptr, row, col, WIDTH: tl.constexpr):
    inside = col < WIDTH
    gate = tl.load(gate_up_ptr + row * (2 * WIDTH) + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, inside, 0.0).to(tl.float32)
    return gate * tl.sigmoid(gate) * up


@Launcher
@triton.jit
def _swiglu_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + row * WIDTH + col, _swiglu(gate_up_ptr, row, col, WIDTH), col < WIDTH)


@Launcher
@triton.jit
def _swiglu_rows_kernel(
    gate_up_ptr, out_ptr, rounded_ptr, scale_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EXACT: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        col = start + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.abs(_swiglu(gate_up_ptr, row, col, WIDTH)))
    scale, inverse = scale_of(tl.max(largest, 0))
    tl.store(scale_ptr + row, scale)
    for start in range(0, WIDTH, BLOCK):
        col = start + tl.arange(0, BLOCK)
        out = _swiglu(gate_up_ptr, row, col, WIDTH)
        tl.store(rounded_ptr + row * WIDTH + col, (out * inverse).to(tl.float8e4nv), col < WIDTH)
        if EXACT:
            tl.store(out_ptr + row * WIDTH + col, out, col < WIDTH)


def swiglu(gate_up: Tensor, form: Form = Form.EXACT) -> Operand:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    keep = Form.EXACT in form
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device) if keep else None
    if Form.ROUNDED in form:
        made = Operand(out, *empty_rounded(rows, width, gate_up))
        if rows:
            _swiglu_rows_kernel[(rows,)](gate_up, *made, WIDTH=width, BLOCK=_ROW_BLOCK, EXACT=keep, num_warps=_ROW_WARPS)
        return made
    if rows and keep:
        _swiglu_kernel[(rows, triton.cdiv(width, _BLOCK))](gate_up, out, WIDTH=width, BLOCK=_BLOCK, num_warps=8)
    return Operand(out)


@triton.jit
def _derivative(gate_up_ptr, grad_ptr, row, col, WIDTH: tl.constexpr):
    """By gate, by up, and the output."""
    inside = col < WIDTH
    gate = tl.load(gate_up_ptr + row * (2 * WIDTH) + col, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, inside, 0.0).to(tl.float32)
    grad = tl.load(grad_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
    sig = tl.sigmoid(gate)
    silu = gate * sig
    return grad * up * (sig + silu * (1 - sig)), grad * silu, silu * up


@Launcher
@triton.jit
def _swiglu_backward_kernel(gate_up_ptr, grad_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, AGAIN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = col < WIDTH
    by_gate, by_up, out = _derivative(gate_up_ptr, grad_ptr, row, col, WIDTH)
    tl.store(gate_up_ptr + row * (2 * WIDTH) + col, by_gate, inside)
    tl.store(gate_up_ptr + row * (2 * WIDTH) + WIDTH + col, by_up, inside)
    if AGAIN:
        tl.store(grad_ptr + row * WIDTH + col, out, inside)


@Launcher
@triton.jit
def _swiglu_backward_rows_kernel(
    gate_up_ptr,
    grad_ptr,
    rounded_ptr,
    scale_ptr,
    out_ptr,
    out_scale_ptr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
    AGAIN: tl.constexpr,
    AGAIN_ROUNDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros([BLOCK], tl.float32)
    largest_out = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        by_gate, by_up, out = _derivative(gate_up_ptr, grad_ptr, row, start + tl.arange(0, BLOCK), WIDTH)
        largest = tl.maximum(largest, tl.maximum(tl.abs(by_gate), tl.abs(by_up)))
        largest_out = tl.maximum(largest_out, tl.abs(out))
    scale, inverse = scale_of(tl.max(largest, 0))
    tl.store(scale_ptr + row, scale)
    out_scale, out_inverse = scale_of(tl.max(largest_out, 0))
    if AGAIN_ROUNDED:
        tl.store(out_scale_ptr + row, out_scale)
    for start in range(0, WIDTH, BLOCK):
        col = start + tl.arange(0, BLOCK)
        inside = col < WIDTH
        by_gate, by_up, out = _derivative(gate_up_ptr, grad_ptr, row, col, WIDTH)
        at = row * (2 * WIDTH) + col
        tl.store(rounded_ptr + at, (by_gate * inverse).to(tl.float8e4nv), inside)
        tl.store(rounded_ptr + at + WIDTH, (by_up * inverse).to(tl.float8e4nv), inside)
        if EXACT:
            tl.store(gate_up_ptr + at, by_gate, inside)
            tl.store(gate_up_ptr + at + WIDTH, by_up, inside)
        if AGAIN:
            tl.store(grad_ptr + row * WIDTH + col, out, inside)
        if AGAIN_ROUNDED:
            tl.store(out_ptr + row * WIDTH + col, (out * out_inverse).to(tl.float8e4nv), inside)


def swiglu_backward_(gate_up: Tensor, grad: Tensor, form: Form, again: Form) -> tuple[Operand, Operand]:
    rows, width = grad.shape
    made = Operand(gate_up if Form.EXACT in form else None)
    out = Operand(grad if Form.EXACT in again else None)
    if Form.ROUNDED not in form:
        assert Form.ROUNDED not in again
        if rows:
            grid = (rows, triton.cdiv(width, _BLOCK))
            _swiglu_backward_kernel[grid](gate_up, grad, WIDTH=width, BLOCK=_BLOCK, AGAIN=out.exact is not None, num_warps=8)
        return made, out
    made = Operand(made.exact, *empty_rounded(rows, 2 * width, grad))
    if Form.ROUNDED in again:
        out = Operand(out.exact, *empty_rounded(rows, width, grad))
    if rows:
        _swiglu_backward_rows_kernel[(rows,)](
            gate_up,
            grad,
            made.rounded,
            made.scale,
            out.rounded,
            out.scale,
            WIDTH=width,
            BLOCK=_ROW_BLOCK,
            EXACT=made.exact is not None,
            AGAIN=out.exact is not None,
            AGAIN_ROUNDED=out.rounded is not None,
            num_warps=_ROW_WARPS,
        )
    return made, out
