"""Matrix products of a linear layer and of its two derivatives, without autograd.

Weights that lie side by side in memory (query, key, value; gate, up) are multiplied as one. A weight's gradient is added to
its running total inside the product itself where there is such a total, which saves a pass over all gradients a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from talaria.train.kernels.elementwise import add_rows_, quantize, quantize_transposed
from talaria.train.kernels.torch_internals import scaled_product

_TOTAL = "_talaria_total"


def accumulate_into(weight: Tensor, total: Tensor) -> None:
    """From now on products add `weight`'s gradient to `total` (fp32, or the weight's dtype) and give autograd none."""
    setattr(weight, _TOTAL, total)


def total_of(weight: Tensor) -> Tensor | None:
    total: Tensor | None = getattr(weight, _TOTAL, None)
    return total


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


def project(x: Tensor, weights: Sequence[Tensor], fp8: bool = False, bias: Tensor | None = None) -> Tensor:
    """x @ [w1; w2; ...].T + bias. x: [T, K]; weights: [N_i, K]; bias: [sum of N_i]. Returns [T, sum of N_i]."""
    if fp8:
        blocks = _blocks(weights)
        slices = row_slices(blocks)
        parts = [_project_fp8(x, w, None if bias is None else bias[rows]) for w, rows in zip(blocks, slices, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    if (block := side_by_side(weights)) is not None:
        return x @ block.t() if bias is None else torch.addmm(bias, x, block.t())
    out = torch.empty(len(x), sum(len(w) for w in weights), dtype=x.dtype, device=x.device)
    for w, columns in zip(weights, row_slices(weights), strict=True):
        if bias is None:
            torch.mm(x, w.t(), out=out[:, columns])
        else:
            torch.addmm(bias[columns], x, w.t(), out=out[:, columns])
    return out


def project_backward(dy: Tensor, weights: Sequence[Tensor], fp8: bool = False) -> Tensor:
    """Derivative by x: dy @ [w1; w2; ...]. dy: [T, sum of N_i]. Returns [T, K]."""
    if fp8:
        blocks = _blocks(weights)
        parts = [_project_backward_fp8(dy[:, columns], w) for w, columns in zip(blocks, row_slices(blocks), strict=True)]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    if (block := side_by_side(weights)) is not None:
        return dy @ block
    dx = torch.empty(len(dy), weights[0].shape[1], dtype=dy.dtype, device=dy.device)
    for w, columns in zip(weights, row_slices(weights), strict=True):
        torch.addmm(dx, dy[:, columns], w, beta=int(columns.start > 0), out=dx)
    return dx


def _project_fp8(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """x @ w.T + bias with both operands in e4m3, a scale for each row of each."""
    xq, x_scale = quantize(x)
    wq, w_scale = quantize(w)
    return _scaled_product(xq, wq, x_scale, w_scale, x.dtype, bias)


def _project_backward_fp8(dy: Tensor, w: Tensor) -> Tensor:
    """dy @ w, likewise: as w's scales belong to the dimension that is summed over, they are moved to dy before it is rounded."""
    by_column, w_scale = quantize_transposed(w)
    dyq, dy_scale = quantize(dy, w_scale)
    return _scaled_product(dyq, by_column, dy_scale, torch.ones(w.shape[1], device=w.device), dy.dtype)


def _scaled_product(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype, bias: Tensor | None = None
) -> Tensor:
    """(a * a_scale) @ (b * b_scale).T + bias; scales: fp32, one a row."""
    if a.is_cuda:
        return scaled_product(a, b, a_scale, b_scale, dtype, bias)
    product = (a.float() * a_scale[:, None]) @ (b.float() * b_scale[:, None]).t()
    return (product if bias is None else product + bias.float()).to(dtype)


def _blocks(weights: Sequence[Tensor]) -> list[Tensor]:
    """One matrix where they lie side by side, else each."""
    block = side_by_side(weights)
    return list(weights) if block is None else [block]


def weight_gradients(weights: Sequence[Tensor], dy: Tensor, x: Tensor) -> list[Tensor | None]:
    """Derivatives by the weights, dy.T @ x: added to their totals (then None is returned), or returned in the weights' dtype."""
    totals = [total_of(w) for w in weights]
    present = [t for t in totals if t is not None]
    block = side_by_side(present) if len(present) == len(weights) else None
    if block is not None:
        add_product(block, dy, x)
        return [None] * len(weights)
    grads: list[Tensor | None] = []
    for total, columns in zip(totals, row_slices(weights), strict=True):
        if total is None:
            grads.append(dy[:, columns].t() @ x)
        else:
            add_product(total, dy[:, columns], x)
            grads.append(None)
    return grads


def vector_gradient(weight: Tensor | None, parts: Tensor | None) -> Tensor | None:
    """The same for the derivative by a vector, which comes as fp32[any, n] to be summed over rows."""
    if weight is None or parts is None or not weight.requires_grad:
        return None
    if (total := total_of(weight)) is None:
        return parts.sum(0).to(weight.dtype)
    add_rows_(total, parts)
    return None


def add_product(total: Tensor, dy: Tensor, x: Tensor) -> None:
    """total += dy.T @ x, summed in fp32 and rounded once to the total's dtype."""
    if total.dtype == x.dtype:
        torch.addmm(total, dy.t(), x, out=total)
    elif x.is_cuda:
        torch.addmm(total, dy.t(), x, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(dy.t().to(total.dtype), x.to(total.dtype))


def row_slices(weights: Sequence[Tensor]) -> list[slice]:
    """Return where each matrix's rows lie among the rows of all."""
    ends = list(accumulate(len(w) for w in weights))
    return [slice(end - len(w), end) for w, end in zip(weights, ends, strict=True)]
