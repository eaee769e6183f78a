"""What a matrix product takes: rows of numbers as they are, in 8 bits with a scale for each row, or both.

A scale is a power of two. So dividing by it rounds nothing, and a row can be given another scale without being rounded twice.
"""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
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


def plain_operand(z: Tensor, form: Form, dtype: torch.dtype) -> Operand:
    """Return fp32 rows in the forms wanted; what kernels do on a GPU as they compute the rows."""
    exact = z.to(dtype) if Form.EXACT in form else None
    if Form.ROUNDED not in form:
        return Operand(exact)
    scale = scale_of(z.abs().amax(-1) if z.shape[-1] else z.new_zeros(len(z)))
    return Operand(exact, (z / scale[:, None]).to(FP8), scale)
