"""RMSNorm and its derivative."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher
from talaria.train.kernels.operand import Form, Operand
from talaria.train.kernels.triton_kernels.fp8 import empty_rounded, scale_of
from talaria.train.kernels.triton_kernels.sums import programs_for

_ROUNDING_PROGRAMS, _ROUNDING_WARPS = 12, 2
"""A multiprocessor, and of each, where the derivative rounds the norm too."""


@triton.jit
def _store(out, at, inside, row, out_ptr, rounded_ptr, scale_ptr, EXACT: tl.constexpr, ROUNDED: tl.constexpr):
    if EXACT:
        tl.store(out_ptr + at, out, inside)
    if ROUNDED:
        scale, inverse = scale_of(tl.max(tl.abs(out), 0))
        tl.store(scale_ptr + row, scale)
        tl.store(rounded_ptr + at, (out * inverse).to(tl.float8e4nv), inside)


def _empty(form: Form, like: Tensor) -> Operand:
    exact = torch.empty_like(like) if Form.EXACT in form else None
    return Operand(exact, *empty_rounded(*like.shape, like)) if Form.ROUNDED in form else Operand(exact)


@Launcher
@triton.jit
def _norm_kernel(
    x_ptr,
    add_ptr,
    w_ptr,
    sum_ptr,
    out_ptr,
    rounded_ptr,
    scale_ptr,
    rstd_ptr,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
    EXACT: tl.constexpr,
    ROUNDED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)
    inside = col < WIDTH
    x = tl.load(x_ptr + row * WIDTH + col, inside, 0.0)
    if ADD:
        x = (x.to(tl.float32) + tl.load(add_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)).to(x.dtype)
        tl.store(sum_ptr + row * WIDTH + col, x, inside)
    x = x.to(tl.float32)
    rstd = tl.rsqrt(tl.sum(x * x, 0) / WIDTH + eps)
    out = x * rstd * tl.load(w_ptr + col, inside, 0.0).to(tl.float32)
    _store(out, row * WIDTH + col, inside, row, out_ptr, rounded_ptr, scale_ptr, EXACT, ROUNDED)
    tl.store(rstd_ptr + row, rstd)


def norm(
    x: Tensor, weight: Tensor, eps: float, add: Tensor | None = None, form: Form = Form.EXACT
) -> tuple[Tensor, Operand, Tensor]:
    rows, width = x.shape
    out, rstd = _empty(form, x), torch.empty(rows, dtype=torch.float32, device=x.device)
    total = x if add is None else torch.empty_like(x)
    if rows:
        _norm_kernel[(rows,)](
            x,
            add,
            weight,
            total,
            *out,
            rstd,
            eps,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            ADD=add is not None,
            EXACT=Form.EXACT in form,
            ROUNDED=Form.ROUNDED in form,
            num_warps=4,
        )
    return total, out, rstd


@Launcher
@triton.jit(do_not_specialize=["rows"])
def _norm_backward_kernel(
    x_ptr,
    rstd_ptr,
    w_ptr,
    grad_ptr,
    skip_ptr,
    dx_ptr,
    out_ptr,
    rounded_ptr,
    scale_ptr,
    dw_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    EXACT: tl.constexpr,
    ROUNDED: tl.constexpr,
):
    col = tl.arange(0, BLOCK)
    inside = col < WIDTH
    w = tl.load(w_ptr + col, inside, 0.0).to(tl.float32)
    dw = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        x_hat = tl.load(x_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32) * tl.load(rstd_ptr + row)
        grad = tl.load(grad_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
        scaled = grad * w
        dx = (scaled - x_hat * (tl.sum(scaled * x_hat, 0) / WIDTH)) * tl.load(rstd_ptr + row)
        dx += tl.load(skip_ptr + row * WIDTH + col, inside, 0.0).to(tl.float32)
        tl.store(dx_ptr + row * WIDTH + col, dx, inside)
        _store(x_hat * w, row * WIDTH + col, inside, row, out_ptr, rounded_ptr, scale_ptr, EXACT, ROUNDED)
        dw += grad * x_hat
    tl.store(dw_ptr + tl.program_id(0) * WIDTH + col, dw, inside)


def norm_backward(
    x: Tensor, rstd: Tensor, weight: Tensor, grad: Tensor, skip: Tensor, form: Form = Form.EXACT
) -> tuple[Tensor, Operand, Tensor]:
    rows, width = x.shape
    programs = min(programs_for(_ROUNDING_PROGRAMS if Form.ROUNDED in form else 3), max(rows, 1))
    dx, out = torch.empty_like(x), _empty(form, x)
    partial = torch.empty(programs, width, dtype=torch.float32, device=x.device)
    _norm_backward_kernel[(programs,)](
        x,
        rstd,
        weight,
        grad,
        skip,
        dx,
        *out,
        partial,
        rows,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        EXACT=Form.EXACT in form,
        ROUNDED=Form.ROUNDED in form,
        num_warps=_ROUNDING_WARPS if Form.ROUNDED in form else 4,
    )
    return dx, out, partial
