"""Cross-entropy of a linear head, in chunks of rows: the logits of a micro-batch never exist at once.

Only supervised positions come in. Gradients are made chunk by chunk in the forward pass, while the chunk's logits are
there, as the loss's derivative with respect to a logit needs nothing but the softmax: d/dz = softmax(z) - onehot(target).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

CHUNK = 2048
"""Rows of logits at a time: with 151,936 entries in the vocabulary, 622 MB in bf16."""


def plain_linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """The reference: full logits, then sum over rows of weights * NLL, in fp32."""
    nll = cross_entropy((hidden @ weight.t()).float(), targets, reduction="none")
    return (nll if weights is None else nll * weights).sum()


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None, chunk: int = CHUNK
) -> Tensor:
    """Sum over rows of weights * NLL(softmax(hidden @ weight.T), targets), an fp32 scalar; 0 for no rows.

    hidden: [S, H]; weight: [V, H]; targets: int64[S]; weights: float32[S] or None for ones.
    """
    return _LinearCrossEntropy.apply(hidden, weight, targets, weights, chunk)  # type: ignore[no-any-return, no-untyped-call]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None, chunk: int) -> Tensor:
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            x, target = hidden[rows], targets[rows]
            scale = None if weights is None else weights[rows]
            logits = x @ weight.t()
            loss, d_logits = softmax_nll(logits, target, scale, need_hidden or need_weight)
            total += loss
            if d_hidden is not None:
                torch.mm(d_logits, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d_logits.t() @ x
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * grad).to(ctx.weight_dtype),
            None,
            None,
            None,
        )


def softmax_nll(logits: Tensor, targets: Tensor, weights: Tensor | None, want_grad: bool) -> tuple[Tensor, Tensor]:
    """Sum of weighted NLL (fp32) and its derivative by the logits (in their dtype). logits: [rows, V]."""
    z = logits.float()
    lse = torch.logsumexp(z, dim=-1)
    nll = lse - z.gather(1, targets[:, None]).squeeze(1)
    loss = (nll if weights is None else nll * weights).sum()
    if not want_grad:
        return loss, logits
    grad = torch.exp(z - lse[:, None])
    grad.scatter_add_(1, targets[:, None], -torch.ones_like(nll)[:, None])
    if weights is not None:
        grad *= weights[:, None]
    return loss, grad.to(logits.dtype)
