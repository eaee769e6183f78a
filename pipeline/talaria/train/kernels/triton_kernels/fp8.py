"""Rows and weights in 8 bits, and transposed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher
from talaria.train.kernels.operand import FP8, SMALLEST
from talaria.train.kernels.triton_kernels.random_bits import random_bits

_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit
def scale_of(largest):
    """See operand.py. Returns (scale, 1 / scale)."""
    bits = (tl.maximum(largest, _SMALLEST) * (1 / 448.0)).to(tl.int32, bitcast=True) + 0x7FFFFF
    bits = bits & 0x7F800000
    return bits.to(tl.float32, bitcast=True), (0x7F000000 - bits).to(tl.float32, bitcast=True)


@Launcher
@triton.jit
def _quantize_kernel(x_ptr, out_ptr, scale_ptr, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        x = tl.load(x_ptr + row * stride + start + col, start + col < WIDTH, 0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    scale, inverse = scale_of(tl.max(largest, 0))
    tl.store(scale_ptr + row, scale)
    for start in range(0, WIDTH, BLOCK):
        inside = start + col < WIDTH
        x = tl.load(x_ptr + row * stride + start + col, inside, 0.0).to(tl.float32)
        tl.store(out_ptr + row * WIDTH + start + col, (x * inverse).to(tl.float8e4nv), inside)


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out, scale = empty_rounded(rows, width, x)
    if rows:
        block = min(4096, triton.next_power_of_2(width))
        _quantize_kernel[(rows,)](x, out, scale, x.stride(0), WIDTH=width, BLOCK=block, num_warps=8)
    return out, scale


def empty_rounded(rows: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for rows in 8 bits and their scales."""
    return (
        torch.empty(rows, width, dtype=FP8, device=like.device),
        torch.empty(rows, dtype=torch.float32, device=like.device),
    )


@triton.jit
def _at_random(x, place, salt):
    """See operand.py. Returns fp32 that are numbers of the format."""
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    raised = tl.where(tl.abs(x) < 0.015625, sign | 0x3C800000, 0).to(tl.float32, bitcast=True)
    moved = (x + raised).to(tl.int32, bitcast=True) + (random_bits(place, salt) << 4) + 8
    return (moved & -0x100000).to(tl.float32, bitcast=True) - raised


@Launcher
@triton.jit(do_not_specialize=["rows", "padded", "salt", "start"])
def _transpose_kernel(
    x_ptr,
    factor_ptr,
    out_ptr,
    rows,
    padded,
    stride,
    salt,
    start,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
    RANDOM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    padded = padded * 16
    x = tl.load(x_ptr + row[:, None] * stride + col[None], (row < rows)[:, None] & (col < WIDTH)[None], 0.0)
    if SCALED:
        x = x.to(tl.float32) * tl.load(factor_ptr + row, row < rows, 0.0)[:, None]
        if RANDOM:
            x = _at_random(x, (row * WIDTH + start).to(tl.uint32)[:, None] + col.to(tl.uint32)[None], salt)
        x = x.to(tl.float8e4nv)
    inside = (col < WIDTH)[:, None] & (row < padded)[None]
    tl.store(out_ptr + col[:, None].to(tl.int64) * padded + row[None], tl.trans(x), inside)


def transposed(x: Tensor, factor: Tensor | None, aligned: int, draw: tuple[int, int] | None) -> Tensor:
    rows, width = x.shape
    units = triton.cdiv(rows, aligned)
    out = torch.empty(width, units * aligned, dtype=FP8, device=x.device)
    if rows:
        grid = (triton.cdiv(rows, 128), triton.cdiv(width, 128))
        _transpose_kernel[grid](
            x,
            factor,
            out,
            rows,
            units,
            x.stride(0),
            *(draw or (0, 0)),
            WIDTH=width,
            BLOCK=128,
            SCALED=factor is not None,
            RANDOM=draw is not None,
            num_warps=8,
        )
    return out


@Launcher
@triton.jit(do_not_specialize=["rows"])
def _contributions_kernel(a_ptr, b_ptr, factor_ptr, largest_ptr, rows, BLOCK: tl.constexpr):
    col = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, rows, BLOCK):
        inside = start + col < rows
        largest = tl.maximum(largest, tl.load(a_ptr + start + col, inside, 0.0) * tl.load(b_ptr + start + col, inside, 0.0))
    most = tl.maximum(tl.max(largest, 0), _SMALLEST * _SMALLEST)
    inverse = (0x7F000000 - most.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    tl.store(largest_ptr, most)
    for start in range(0, rows, BLOCK):
        inside = start + col < rows
        both = tl.load(a_ptr + start + col, inside, 0.0) * tl.load(b_ptr + start + col, inside, 0.0)
        tl.store(factor_ptr + start + col, both * inverse, inside)


def contributions(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    factor, largest = torch.empty_like(a), torch.empty(1, dtype=torch.float32, device=a.device)
    _contributions_kernel[(1,)](a, b, factor, largest, len(a), BLOCK=4096, num_warps=16)
    return factor, largest


@Launcher
@triton.jit(do_not_specialize=["salt", "start"])
def _round_kernel(x_ptr, inverse_ptr, out_ptr, size, salt, start, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, at < size, 0.0).to(tl.float32) * tl.load(inverse_ptr)
    tl.store(out_ptr + at, _at_random(x, at + start, salt).to(tl.float8e4nv), at < size)


def round_into(x: Tensor, inverse: Tensor, out: Tensor, salt: int, start: int) -> None:
    """out = x * inverse[0], in 8 bits, at random; both contiguous."""
    grid = (triton.cdiv(x.numel(), 4096),)
    _round_kernel[grid](x, inverse, out, x.numel(), salt, start, BLOCK=4096, num_warps=8)
