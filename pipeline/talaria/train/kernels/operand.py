"""What a matrix product takes: rows of numbers as they are, in 8 bits with a scale for each row, or both.

A scale is a power of two. So dividing by it rounds nothing, and a row can be given another scale without being rounded twice.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor

from talaria.train.kernels.random_bits import random_bits

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
_LEAST = 2.0**-6
"""Of the format's normal numbers."""
SMALLEST = 2.0**-60
"""A row whose largest value is less is rounded as if it were this."""


class Form(IntFlag):
    """In which forms an operand is wanted."""

    NONE = 0
    EXACT = 1
    ROUNDED = 2


class Operand(NamedTuple):
    """[T, n]: row t is exact[t], or rounded[t] * scale[t]."""

    exact: Tensor | None
    rounded: Tensor | None = None
    """e4m3[T, n]"""
    scale: Tensor | None = None
    """fp32[T]; where `rounded` is absent, that with which it is to be made"""

    def columns(self, which: slice) -> Operand:
        return Operand(_columns(self.exact, which), _columns(self.rounded, which), self.scale)


def _columns(x: Tensor | None, which: slice) -> Tensor | None:
    return None if x is None else x[:, which]


def scale_of(largest: Tensor) -> Tensor:
    """Return the least power of two, fp32, that divides values of up to `largest` into the range of e4m3."""
    bits = (largest.float().clamp(min=SMALLEST) * (1 / FP8_MAX)).view(torch.int32) + 0x7FFFFF
    return (bits & 0x7F800000).view(torch.float32)


def at_random(z: Tensor, salt: int, start: int) -> Tensor:
    """fp32 of the range of e4m3 to one of the two numbers of that format beside it, with the odds that make the mean exact.

    The random bits are a hash of (salt, place in the weight that has z from element `start` on).
    """
    bits = random_bits(start, z.numel(), salt, z.device).int().view(z.shape)
    # Below its least exponent the format's numbers are as far apart as they are just above it.
    raised = torch.where(z.abs() < _LEAST, torch.full_like(z, _LEAST).copysign(z), 0.0)
    moved = (z + raised).view(torch.int32) + (bits << 4) + 8
    return (moved & -0x100000).view(torch.float32) - raised


def plain_operand(z: Tensor, form: Form, dtype: torch.dtype) -> Operand:
    """Return fp32 rows in the forms wanted; what kernels do on a GPU as they compute the rows."""
    exact = z.to(dtype) if Form.EXACT in form else None
    if Form.ROUNDED not in form:
        return Operand(exact)
    scale = scale_of(z.abs().amax(-1) if z.shape[-1] else z.new_zeros(len(z)))
    return Operand(exact, (z / scale[:, None]).to(FP8), scale)
