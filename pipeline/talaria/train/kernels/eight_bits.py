"""Operands of products in 8 bits: rows and weights in e4m3, and both transposed, as a product wants them that sums over rows.

On Hopper, e4m3 is multiplied only along what lies side by side in memory. So the gradient by x wants the weight transposed, and
that by the weight wants both of its operands transposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from talaria.train.kernels.elementwise import fused
from talaria.train.kernels.operand import FP8, SMALLEST, Form, Operand, at_random, plain_operand, scale_of
from talaria.train.kernels.torch_internals import scaled_product

_ALIGNED = 16
"""What the sides of an 8-bit product are multiples of."""
_KEPT = "_talaria_rounded"


def operand(x: Tensor, form: Form) -> Operand:
    """Rows of x, which may be strided, in the forms wanted."""
    if Form.ROUNDED not in form:
        return Operand(x if Form.EXACT in form else None)
    exact = x if Form.EXACT in form else None
    if kernels := fused(x):
        return Operand(exact, *kernels.quantize(x))
    return plain_operand(x.float(), Form.ROUNDED, x.dtype)._replace(exact=exact)


def transposed(x: Tensor, factor: Tensor | None = None, draw: Draw | None = None) -> Tensor:
    """e4m3[n, T rounded up to 16] of x [T, n], whose rows are first multiplied by `factor`, fp32[T]; zeros are appended.

    draw: round at random, and by which bits; else to nearest. Only beside a factor.
    """
    if kernels := fused(x):
        return kernels.transposed(x, factor, _ALIGNED, draw)  # type: ignore[no-any-return]
    z = x.float() if factor is None else x.float() * factor[:, None]
    z = z if draw is None else at_random(z, *draw)
    out = torch.zeros(x.shape[1], -(-len(x) // _ALIGNED) * _ALIGNED, dtype=FP8, device=x.device)
    out.view(torch.uint8)[:, : len(x)] = z.to(FP8).view(torch.uint8).t()
    return out


def contributions(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return (fp32[T], fp32[1]), whose product are two operands' scales of each row multiplied; the first is at most 1.

    In a sum over rows a row's two scales are a factor of it. So one operand is taken as it is, and the other's rows lose no more
    bits than they lose weight in the sum: rows of much greater scale than others, in one operand alone, do no harm.
    """
    if kernels := fused(a):
        return kernels.contributions(a, b)  # type: ignore[no-any-return]
    both = a * b
    largest = both.amax().clamp(min=SMALLEST**2).view(1) if len(both) else both.new_ones(1)
    return both / largest, largest


class Draw(NamedTuple):
    """Which random bits a weight is rounded by."""

    salt: int
    """31 bits of the step and the weight, so that each step draws others, and all of its micro-batches and ranks the same."""
    start: int = 0
    """The place of the weight's first element among those that share the salt."""


class RoundedWeight:
    """A weight [N, K] in e4m3 with one scale for all of it, as it lies and transposed.

    It is rounded at random, as e4m3 numbers are 6 to 12% apart: rounded to nearest, most weights would be off in the same way in
    every step, and the model would come to rely on it (docs/decisions/0016-eight-bit-products.md).
    """

    def __init__(self, weight: Tensor, *, keep: bool = False) -> None:
        """keep: hold the rounded weight, one byte a number, from one `refresh` to the next."""
        self.weight = weight
        self.scales = self.inverses = torch.empty(0)
        """The scale, as often as the longer side has numbers, and 1 / scale."""
        self._values = torch.empty_like(weight, dtype=FP8) if keep else None
        self._draw = Draw(0)
        self._version = -1

    def refresh(self, version: int, draw: Draw) -> RoundedWeight:
        """Round anew, unless this has been done for this version of the weight and by these bits."""
        if (version, draw) != (self._version, self._draw):
            self._draw = draw
            largest = torch.linalg.vector_norm(self.weight, float("inf"), dtype=torch.float32)
            self.scales = scale_of(largest).expand(max(self.weight.shape)).contiguous()
            self.inverses = self.scales.reciprocal()
            if self._values is not None:
                self._round(self._values)
            self._version = version
        return self

    def by_row(self) -> tuple[Tensor, Tensor]:
        """Return (e4m3[N, K], the scale N times)."""
        values = self._values
        if values is None:
            values = self._round(torch.empty_like(self.weight, dtype=FP8))
        return values, self.scales[: len(self.weight)]

    def by_column(self) -> tuple[Tensor, Tensor]:
        """Return (e4m3[K, N], the scale K times)."""
        rows, columns = self.weight.shape
        values = self._values
        values = transposed(self.weight, self.inverses[:rows], self._draw) if values is None else transposed(values)
        return values, self.scales[:columns]

    def _round(self, out: Tensor) -> Tensor:
        if kernels := fused(self.weight):
            kernels.round_into(self.weight, self.inverses, out, *self._draw)
        else:
            out.copy_(at_random(self.weight.float() * self.inverses[0], *self._draw))
        return out


def keep_rounded(weights: Sequence[Tensor], block: Tensor, *, values: bool) -> None:
    """Until they are next written to, round these weights once, and not at each use: their scale, or their `values` too.

    block: all of them. They must not move any more, and who writes to them must raise their version (autograd's counter).
    """
    setattr(weights[0], _KEPT, RoundedWeight(block, keep=values))


def rounded_weight(weights: Sequence[Tensor], block: Tensor, draw: Draw) -> RoundedWeight:
    """Return the weights that make up `block` as they are now, rounded by these bits."""
    kept: RoundedWeight | None = getattr(weights[0], _KEPT, None)
    if kept is None or kept.weight.shape != block.shape:
        return RoundedWeight(block).refresh(0, draw)
    return kept.refresh(sum(weight._version for weight in weights), draw)


def rounded_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """(a * a_scale) @ (b * b_scale).T + bias of e4m3 matrices; scales: fp32, one a row."""
    if a.is_cuda:
        return scaled_product(a, b, a_scale[:, None], b_scale[None], dtype, bias)
    product = (a.float() * a_scale[:, None]) @ (b.float() * b_scale[:, None]).t()
    return (product if bias is None else product + bias.float()).to(dtype)


def rounded_sum(a: Tensor, b: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale[0] * (a @ b.T) of e4m3 matrices, where so much is summed that its partial sums are kept in fp32."""
    if a.is_cuda:
        return scaled_product(a, b, scale, _one(a.device), dtype, exact_sums=True)
    return (a.float() @ b.float().t() * scale).to(dtype)


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones(1, device=device)
