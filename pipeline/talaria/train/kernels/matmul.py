"""Matrix products of a linear layer and of its two derivatives, without autograd.

Weights that lie side by side in memory (query, key, value; gate, up) are multiplied as one. A weight's gradient is added to
its running total inside the product itself where there is such a total, which saves a pass over all gradients a micro-batch.
Operands that come in 8 bits are multiplied in 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from talaria.train.kernels.eight_bits import (
    Draw,
    contributions,
    keep_rounded,
    rounded_product,
    rounded_sum,
    rounded_weight,
    transposed,
)
from talaria.train.kernels.elementwise import add_rows_
from talaria.train.kernels.operand import Operand

_TOTAL = "_talaria_total"


@dataclass
class RunningTotal:
    tensor: Tensor
    """fp32, or the weight's dtype"""
    stale: bool = False
    """Whether it is to be forgotten: what is added next takes its place, which spares filling it with zeros first."""

    def settled(self) -> Tensor:
        """Return the tensor with what it stands for."""
        if self.stale:
            self.tensor.zero_()
            self.stale = False
        return self.tensor


def accumulate_into(weight: Tensor, total: Tensor) -> RunningTotal:
    """From now on products add `weight`'s gradient to `total` and give autograd none."""
    running = RunningTotal(total)
    setattr(weight, _TOTAL, running)
    return running


def total_of(weight: Tensor) -> Tensor | None:
    running: RunningTotal | None = getattr(weight, _TOTAL, None)
    return running.settled() if running else None


def side_by_side(tensors: Sequence[Tensor]) -> Tensor | None:
    """One [sum of rows, columns] view over matrices that follow each other in memory; None where they do not."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    for a, b in pairwise(tensors):
        if a.data_ptr() + a.nbytes != b.data_ptr() or a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
            return None
    rows, width = sum(len(t) for t in tensors), first.shape[1]
    return first.as_strided((rows, width), (width, 1))


@torch.no_grad()
def lay_side_by_side(weights: Sequence[nn.Parameter]) -> None:
    """Move matrices of equal width into one block of memory, in order."""
    block = torch.cat([weight.data for weight in weights])
    for weight, rows in zip(weights, row_slices(weights), strict=True):
        weight.data = block[rows]


def keep_in_eight_bits(weights: Sequence[Tensor], *, values: bool) -> None:
    """Round weights once after each update, their scale alone or their `values` too; see `keep_rounded`."""
    for block, members in _blocks(weights):
        keep_rounded(members, block, values=values)


def project(x: Operand, weights: Sequence[Tensor], bias: Tensor | None = None, salt: int = 0) -> Tensor:
    """x @ [w1; w2; ...].T + bias. x: [T, K]; weights: [N_i, K]; bias: [sum of N_i]. Returns [T, sum of N_i].

    salt: of the random bits by which weights are rounded where products are in 8 bits (`Draw`).
    """
    if x.scale is not None:
        return _project_rounded(x, weights, bias, salt)
    exact = _exact(x)
    if (block := side_by_side(weights)) is not None:
        return exact @ block.t() if bias is None else torch.addmm(bias, exact, block.t())
    out = torch.empty(len(exact), sum(len(w) for w in weights), dtype=exact.dtype, device=exact.device)
    for w, columns in zip(weights, row_slices(weights), strict=True):
        if bias is None:
            torch.mm(exact, w.t(), out=out[:, columns])
        else:
            torch.addmm(bias[columns], exact, w.t(), out=out[:, columns])
    return out


def project_backward(dy: Operand, weights: Sequence[Tensor], salt: int = 0) -> Tensor:
    """Derivative by x: dy @ [w1; w2; ...]. dy: [T, sum of N_i]. Returns [T, K]. salt: as it was in `project`."""
    if dy.scale is not None:
        return _project_backward_rounded(dy, weights, salt)
    exact = _exact(dy)
    if (block := side_by_side(weights)) is not None:
        return exact @ block
    dx = torch.empty(len(exact), weights[0].shape[1], dtype=exact.dtype, device=exact.device)
    for w, columns in zip(weights, row_slices(weights), strict=True):
        torch.addmm(dx, exact[:, columns], w, beta=int(columns.start > 0), out=dx)
    return dx


def weight_gradients(weights: Sequence[Tensor], dy: Operand, x: Operand) -> list[Tensor | None]:
    """Derivatives by the weights, dy.T @ x: added to their totals (then None is returned), or returned in the weights' dtype."""
    if x.scale is not None:
        return _rounded_gradients(weights, dy, x)
    totals: list[RunningTotal | None] = [getattr(w, _TOTAL, None) for w in weights]
    present = [total for total in totals if total]
    block = side_by_side([total.tensor for total in present]) if len(present) == len(weights) else None
    exact_dy, exact_x = _exact(dy), _exact(x)
    if block is not None and len({total.stale for total in present}) == 1:
        add_product(block, exact_dy, exact_x, instead=present[0].stale)
        for total in present:
            total.stale = False
        return [None] * len(weights)
    grads: list[Tensor | None] = []
    for running, columns in zip(totals, row_slices(weights), strict=True):
        if running is None:
            grads.append(exact_dy[:, columns].t() @ exact_x)
            continue
        add_product(running.tensor, exact_dy[:, columns], exact_x, instead=running.stale)
        running.stale = False
        grads.append(None)
    return grads


def _project_rounded(x: Operand, weights: Sequence[Tensor], bias: Tensor | None, salt: int) -> Tensor:
    assert x.rounded is not None
    assert x.scale is not None
    parts, start = [], 0
    for block, members in _blocks(weights):
        w, w_scale = rounded_weight(members, block, Draw(salt, start * block.shape[1])).by_row()
        part_bias = None if bias is None else bias[start : start + len(w)]
        parts.append(rounded_product(x.rounded, w, x.scale, w_scale, weights[0].dtype, part_bias))
        start += len(w)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _project_backward_rounded(dy: Operand, weights: Sequence[Tensor], salt: int) -> Tensor:
    assert dy.rounded is not None
    assert dy.scale is not None
    parts, start = [], 0
    for block, members in _blocks(weights):
        w, w_scale = rounded_weight(members, block, Draw(salt, start * block.shape[1])).by_column()
        part = dy.rounded[:, start : start + len(block)]
        parts.append(rounded_product(part, w, dy.scale, w_scale, weights[0].dtype))
        start += len(block)
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def _rounded_gradients(weights: Sequence[Tensor], dy: Operand, x: Operand) -> list[Tensor | None]:
    """As a product in 8 bits cannot be added to a total, this takes a pass of its own over both."""
    assert dy.rounded is not None
    assert dy.scale is not None
    assert x.scale is not None
    factor, scale = contributions(dy.scale, x.scale)
    by_row = transposed(dy.rounded, factor)
    by_column = transposed(_exact(x), x.scale.reciprocal()) if x.rounded is None else transposed(x.rounded)
    product = rounded_sum(by_row, by_column, scale, weights[0].dtype)
    totals = [total_of(w) for w in weights]
    present = [t for t in totals if t is not None]
    if len(present) == len(weights) and (block := side_by_side(present)) is not None:
        block.add_(product)
        return [None] * len(weights)
    grads: list[Tensor | None] = []
    for total, rows in zip(totals, row_slices(weights), strict=True):
        grads.append(product[rows] if total is None else None)
        if total is not None:
            total.add_(product[rows])
    return grads


def _exact(x: Operand) -> Tensor:
    assert x.exact is not None
    return x.exact


def _blocks(weights: Sequence[Tensor]) -> list[tuple[Tensor, Sequence[Tensor]]]:
    """One matrix where they lie side by side, else each; with those that it is made of."""
    block = side_by_side(weights)
    return [(w, [w]) for w in weights] if block is None else [(block, weights)]


def vector_gradient(weight: Tensor | None, parts: Tensor | None) -> Tensor | None:
    """The same for the derivative by a vector, which comes as fp32[any, n] to be summed over rows."""
    if weight is None or parts is None or not weight.requires_grad:
        return None
    if (total := total_of(weight)) is None:
        return parts.sum(0).to(weight.dtype)
    add_rows_(total, parts)
    return None


def add_product(total: Tensor, dy: Tensor, x: Tensor, *, instead: bool = False) -> None:
    """total += dy.T @ x, summed in fp32 and rounded once to the total's dtype; `instead` of what it was, if asked for."""
    if instead:
        _write_product(total, dy, x)
    elif total.dtype == x.dtype:
        torch.addmm(total, dy.t(), x, out=total)
    elif x.is_cuda:
        torch.addmm(total, dy.t(), x, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(dy.t().to(total.dtype), x.to(total.dtype))


def _write_product(total: Tensor, dy: Tensor, x: Tensor) -> None:
    if total.dtype == x.dtype:
        torch.mm(dy.t(), x, out=total)
    elif x.is_cuda:
        torch.mm(dy.t(), x, out_dtype=total.dtype, out=total)
    else:
        torch.mm(dy.t().to(total.dtype), x.to(total.dtype), out=total)


def row_slices(weights: Sequence[Tensor]) -> list[slice]:
    """Return where each matrix's rows lie among the rows of all."""
    ends = list(accumulate(len(w) for w in weights))
    return [slice(end - len(w), end) for w, end in zip(weights, ends, strict=True)]
