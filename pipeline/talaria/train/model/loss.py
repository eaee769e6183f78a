"""Cross-entropy of a linear head, in chunks of rows: the logits of a micro-batch never exist at once.

Only supervised positions come in. Gradients are made chunk by chunk in the forward pass, while the chunk's logits are
there, as the loss's derivative with respect to a logit needs nothing but the softmax: d/dz = softmax(z) - onehot(target).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from talaria.train.kernels.elementwise import softmax_nll_
from talaria.train.kernels.matmul import add_product, total_of
from talaria.train.kernels.torch_internals import assert_on_device

CHUNK = 4096
"""Most rows of logits at a time: with 151,936 entries in the vocabulary, 1.2 GB in bf16."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None, *, scale: float = 1.0, chunk: int = CHUNK
) -> Tensor:
    """scale * the sum over rows of weights * NLL(softmax(hidden @ weight.T), targets), an fp32 scalar; 0 for no rows.

    hidden: [S, H]; weight: [V, H]; targets: int64[S]; weights: float32[S] or None for ones.
    Where `weight` has a running total of gradients (matmul.py), the result must be differentiated as it is: its
    gradient is added to the total here, before a factor that came later could be known.
    """
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if weights is not None or scale != 1.0:
        weights = torch.full(targets.shape, scale, device=hidden.device) if weights is None else weights * scale
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, weights, chunk, differentiate)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, chunk: int, differentiate: bool
    ) -> Tensor:
        for_hidden, for_weight = (differentiate and needed for needed in ctx.needs_input_grad[:2])
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        total = total_of(weight) if for_weight else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight and total is None else total
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        for rows in _chunks(len(hidden), chunk):
            logits = hidden[rows] @ weight.t()
            nll[rows] = softmax_nll_(logits, targets[rows], None if weights is None else weights[rows], differentiate)
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                add_product(d_weight, logits, hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight if total is None else None)
        ctx.weight_dtype, ctx.totalled = weight.dtype, total is not None
        return nll.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        d_hidden, d_weight = ctx.saved_tensors
        if ctx.totalled:
            assert_on_device((grad == 1).all())
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * grad).to(ctx.weight_dtype),
            *[None] * 4,
        )


def _chunks(rows: int, most: int) -> list[slice]:
    """Equal parts: a small last one would be slow for its size."""
    parts = math.ceil(rows / most)
    edges = [rows * part // parts for part in range(parts + 1)] if parts else []
    return [slice(start, end) for start, end in pairwise(edges)]
