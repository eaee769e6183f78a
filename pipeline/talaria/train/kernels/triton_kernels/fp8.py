"""Rows in 8 bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _quantize_kernel(
    x_ptr,
    column_scale_ptr,
    out_ptr,
    scale_ptr,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
    ROUND: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        inside = start + col < WIDTH
        x = tl.load(x_ptr + row * stride + start + col, inside, 0.0).to(tl.float32)
        if SCALED:
            x *= tl.load(column_scale_ptr + start + col, inside, 0.0)
        largest = tl.maximum(largest, tl.abs(x))
    scale = tl.maximum(tl.max(largest, 0), 1e-12) / 448.0
    tl.store(scale_ptr + row, scale)
    if ROUND:
        for start in range(0, WIDTH, BLOCK):
            inside = start + col < WIDTH
            x = tl.load(x_ptr + row * stride + start + col, inside, 0.0).to(tl.float32)
            if SCALED:
                x *= tl.load(column_scale_ptr + start + col, inside, 0.0)
            x = tl.minimum(tl.maximum(x / scale, -448.0), 448.0)
            tl.store(out_ptr + row * WIDTH + start + col, x.to(tl.float8e4nv), inside)


def quantize(x: Tensor, column_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    out = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    _quantize(x, column_scale, out, scale)
    return out, scale


def _quantize(x: Tensor, column_scale: Tensor | None, out: Tensor | None, scale: Tensor) -> None:
    rows, width = x.shape
    if rows:
        _quantize_kernel[(rows,)](
            x,
            column_scale,
            out,
            scale,
            x.stride(0),
            WIDTH=width,
            BLOCK=min(4096, triton.next_power_of_2(width)),
            SCALED=column_scale is not None,
            ROUND=out is not None,
            num_warps=8,
        )


@triton.jit
def _transpose_kernel(x_ptr, scale_ptr, out_ptr, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (col < WIDTH)[None]
    x = tl.load(x_ptr + row[:, None] * WIDTH + col[None], inside, 0.0).to(tl.float32)
    x = x / tl.load(scale_ptr + row, row < rows, 1.0)[:, None]
    x = tl.minimum(tl.maximum(x, -448.0), 448.0).to(tl.float8e4nv)
    tl.store(out_ptr + col[:, None].to(tl.int64) * rows + row[None], tl.trans(x), tl.trans(inside))


def quantize_transposed(x: Tensor) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    _quantize(x, None, None, scale)
    out = torch.empty(width, rows, dtype=torch.float8_e4m3fn, device=x.device)
    _transpose_kernel[(triton.cdiv(rows, 64), triton.cdiv(width, 64))](x, scale, out, rows, WIDTH=width, BLOCK=64, num_warps=4)
    return out, scale
