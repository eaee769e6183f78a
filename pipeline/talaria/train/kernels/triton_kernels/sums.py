"""Sums over tokens through a partial sum a program, which keeps them deterministic."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher


def programs_for(per_multiprocessor: int) -> int:
    return per_multiprocessor * _multiprocessors(torch.cuda.current_device())


@cache
def _multiprocessors(device: int) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


@Launcher
@triton.jit(do_not_specialize=["rows"])
def _add_rows_kernel(total_ptr, parts_ptr, rows, stride, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    col = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = col < WIDTH
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        total += tl.load(parts_ptr + row[:, None] * stride + col[None], (row < rows)[:, None] & inside[None], 0.0)
    added = tl.load(total_ptr + col, inside, 0.0).to(tl.float32) + tl.sum(total, 0)
    tl.store(total_ptr + col, added, inside)


def add_rows_(total: Tensor, parts: Tensor) -> None:
    rows, width = parts.shape
    _add_rows_kernel[(triton.cdiv(width, 32),)](
        total, parts, rows, parts.stride(0), WIDTH=width, ROWS=64, COLUMNS=32, num_warps=4
    )


@Launcher
@triton.jit(do_not_specialize=["rows"])
def _column_sums_kernel(x_ptr, out_ptr, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    col = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = col < WIDTH
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(tl.program_id(1).to(tl.int64), tl.cdiv(rows, ROWS), tl.num_programs(1)):
        row = block * ROWS + tl.arange(0, ROWS)
        total += tl.load(x_ptr + row[:, None] * WIDTH + col[None], (row < rows)[:, None] & inside[None], 0.0).to(tl.float32)
    tl.store(out_ptr + tl.program_id(1) * WIDTH + col, tl.sum(total, 0), inside)


def column_sums(x: Tensor) -> Tensor:
    rows, width = x.shape
    blocks = triton.cdiv(width, 128)
    programs = min(triton.cdiv(programs_for(4), blocks), max(1, triton.cdiv(rows, 32)))
    out = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    _column_sums_kernel[(blocks, programs)](x, out, rows, WIDTH=width, ROWS=32, COLUMNS=128, num_warps=4)
    return out
