"""AdamW, in place: of a piece of one parameter, and of many parameters in one launch.

Launched one by one, the updates of a model's hundreds of parameters wait for the host once a rank updates only a part of each. So
a launch for many takes a table of addresses, and each program looks up whose block it is.

Products and sums are rounded one by one (`enable_fp_fusion=False`). Where the compiler may fuse them, it may do so otherwise for
another alignment and in the other kernel; then a state in host memory, updated piece by piece, is not the resident one to the
bit. Memory decides the speed either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from talaria.train.kernels.kernel_launch import Launcher
from talaria.train.kernels.triton_kernels.random_bits import random_bits

_BLOCK = 2048
_ALIGNED = 16
"""Bytes, and elements: where all begin and end so, 16 bytes are loaded at a time."""


@triton.jit
def _update(
    param_ptr,
    low_ptr,
    grad_ptr,
    m_ptr,
    v_ptr,
    at,
    inside,
    start,
    scale,
    keep,
    step_size,
    root_correction,
    beta1,
    beta2,
    eps,
    salt,
    HALF: tl.constexpr,
    LOW: tl.constexpr,
):
    """The elements `at` of a piece that begins at `start` of its parameter, as far as they are `inside`."""
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
            high = (bits + random_bits(at + start, salt)) >> 16
        tl.store(param_ptr + at, high.to(tl.int16), inside)
    else:
        tl.store(param_ptr + at, master, inside)


@Launcher
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
    _update(
        param_ptr,
        low_ptr,
        grad_ptr,
        m_ptr,
        v_ptr,
        at,
        inside,
        start,
        scale,
        keep,
        step_size,
        root_correction,
        beta1,
        beta2,
        eps,
        salt,
        HALF,
        LOW,
    )


def adamw_(
    param: Tensor, low: Tensor | None, grad: Tensor, m: Tensor, v: Tensor, scalars: tuple[float, ...], start: int = 0
) -> None:
    """optim.update of a flat piece; `scalars` are optim.AdamWScalars; `start`: where in its parameter the piece begins."""
    half = param.dtype == torch.bfloat16
    stored = param.view(torch.int16) if half else param
    count = param.numel()
    if count:
        _adamw_kernel[(triton.cdiv(count, _BLOCK),)](
            stored,
            low,
            grad,
            m,
            v,
            count,
            *scalars,
            start,
            HALF=half,
            LOW=low is not None,
            BLOCK=_BLOCK,
            num_warps=8,
            enable_fp_fusion=False,
        )


@Launcher
@triton.jit(do_not_specialize=["salt"])
def _adamw_many_kernel(
    owner_ptr,
    rows_ptr,
    scale,
    keep,
    step_size,
    root_correction,
    beta1,
    beta2,
    eps,
    salt,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    LOW: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    row_ptr = rows_ptr + tl.load(owner_ptr + block) * 8
    at = (block - tl.load(row_ptr + 6)) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.multiple_of(tl.load(row_ptr + 5), ALIGN)
    of_parameter = tl.load(row_ptr + 7)  # 31 bits of salt, and above them whether it decays
    _update(
        tl.multiple_of(tl.load(row_ptr).to(tl.pointer_type(PARAM)), ALIGN),
        tl.multiple_of(tl.load(row_ptr + 1).to(tl.pointer_type(tl.int16)), ALIGN),
        tl.multiple_of(tl.load(row_ptr + 2).to(tl.pointer_type(GRAD)), ALIGN),
        tl.multiple_of(tl.load(row_ptr + 3).to(tl.pointer_type(STATE)), ALIGN),
        tl.multiple_of(tl.load(row_ptr + 4).to(tl.pointer_type(STATE)), ALIGN),
        at,
        inside,
        0,
        scale,
        tl.where(of_parameter >> 31 != 0, keep, 1.0),
        step_size,
        root_correction,
        beta1,
        beta2,
        eps,
        (salt ^ of_parameter) & 0x7FFFFFFF,
        tl.int16 == PARAM,
        LOW,
    )


@dataclass(frozen=True)
class AdamWTable:
    """Where the tensors of parameters that are updated in one launch lie; good for as long as they stay there."""

    rows: Tensor
    """int64[parameters, 8]: addresses of weight, low bits, gradient and both moments; elements; first block; salt and decay."""
    owner: Tensor
    """int32[blocks]: the row of each."""
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype]
    """Of weights, gradients and moments."""
    low: bool
    align: int
    counts: tuple[int, ...]
    """Elements of each parameter."""

    @classmethod
    def of(
        cls,
        addresses: Sequence[Sequence[int]],
        dtypes: Sequence[torch.dtype],
        low: bool,
        device: torch.device,
        former: AdamWTable | None = None,
    ) -> AdamWTable:
        """`addresses`: per parameter those of its five tensors (0 for none), its elements, its salt and 1 where it decays.

        `former`: a table that knows the same blocks, if the parameters have as many elements: gradients of sharded ranks move in
        each step, and to copy megabytes of numbers the host would wait for the device.
        """
        counts = tuple(row[5] for row in addresses)
        blocks = [triton.cdiv(count, _BLOCK) for count in counts]
        firsts = accumulate(blocks, initial=0)
        rows = [
            [*places, count, first, decays << 31 | salt]
            for (*places, count, salt, decays), first in zip(addresses, firsts, strict=False)
        ]
        if former and former.counts == counts:
            owner = former.owner
        else:
            owner = torch.repeat_interleave(torch.arange(len(rows), dtype=torch.int32), torch.tensor(blocks)).to(device)
        aligned = all(number % _ALIGNED == 0 for row in rows for number in row[:6])
        param, grad, state = dtypes
        table = torch.tensor(rows, dtype=torch.int64).to(device)
        return cls(table, owner, (param, grad, state), low, _ALIGNED if aligned else 1, counts)


_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}


def adamw_many_(table: AdamWTable, scalars: Sequence[float]) -> None:
    """optim.update of whole flat parameters; `scalars` are optim.AdamWScalars, with the step's part of the salt."""
    if not len(table.owner):
        return
    param, grad, state = table.dtypes
    _adamw_many_kernel[(len(table.owner),)](
        table.owner,
        table.rows,
        *scalars,
        PARAM=tl.int16 if param == torch.bfloat16 else _TYPES[param],
        GRAD=_TYPES[grad],
        STATE=_TYPES[state],
        LOW=table.low,
        ALIGN=table.align,
        BLOCK=_BLOCK,
        num_warps=8,
        enable_fp_fusion=False,
    )
