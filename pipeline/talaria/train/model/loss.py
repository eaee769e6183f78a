"""Cross-entropy of a linear head, in chunks of rows: the logits of a micro-batch never exist at once.

Only supervised positions come in. Gradients are made chunk by chunk in the forward pass, while the chunk's logits are
there, as the loss's derivative with respect to a logit needs nothing but the softmax: d/dz = softmax(z) - onehot(target).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from talaria.common.errors import ConfigError
from talaria.common.user_code import load_function
from talaria.train.kernels.elementwise import softmax_nll_
from talaria.train.kernels.matmul import add_product, total_of
from talaria.train.kernels.torch_internals import assert_on_device

CHUNK = 4096
"""Most rows of logits at a time: with 151,936 entries in the vocabulary, 1.2 GB in bf16."""


class TokenLoss(Protocol):
    """fp32[rows] weighted losses of logits [rows, V]; in place, `logits` become the derivatives of their sum if wanted."""

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None, want_grad: bool) -> Tensor: ...


nll_: TokenLoss = softmax_nll_


def dft_(logits: Tensor, targets: Tensor, weights: Tensor | None, want_grad: bool) -> Tensor:
    """NLL times the target's own probability, which is not differentiated (dynamic fine-tuning; Wu et al., 2025).

    What the model finds unlikely weighs less, so that the rare tokens of the data do not dominate the gradient.
    """
    probability = torch.exp(-softmax_nll_(logits, targets, None, False))
    return softmax_nll_(logits, targets, probability if weights is None else probability * weights, want_grad)


@dataclass(frozen=True)
class UserLoss:
    """A user's function (logits fp32[rows, V], targets int64[rows]) -> fp32[rows], differentiated by autograd."""

    function: Callable[[Tensor, Tensor], Tensor]
    name: str

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None, want_grad: bool) -> Tensor:
        with torch.enable_grad():
            z = logits.detach().float().requires_grad_()
            losses = self.function(z, targets)
            if not isinstance(losses, Tensor) or losses.shape != targets.shape:
                got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise ConfigError(f"train.loss: {self.name} should return a loss per target, {tuple(targets.shape)}, not {got}.")
            weighted = losses.float() if weights is None else losses.float() * weights
            if want_grad:
                (grad,) = torch.autograd.grad(weighted.sum(), z)
                logits.copy_(grad)
        return weighted.detach()


def token_loss(name: str) -> TokenLoss:
    """Return the loss that train.loss names. Raises ConfigError for a function that is not there or not allowed."""
    built_in: dict[str, TokenLoss] = {"nll": nll_, "dft": dft_}
    return built_in.get(name) or UserLoss(load_function("train.loss", name), name)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    scale: float = 1.0,
    chunk: int = CHUNK,
    loss: TokenLoss = nll_,
    each: Tensor | None = None,
) -> Tensor:
    """scale * the sum over rows of weights * loss(hidden @ weight.T, targets), an fp32 scalar; 0 for no rows.

    hidden: [S, H]; weight: [V, H]; targets: int64[S]; weights: float32[S] or None for ones; each: float32[S], which
    takes what is summed, or None.
    Where `weight` has a running total of gradients (matmul.py), the result must be differentiated as it is: its
    gradient is added to the total here, before a factor that came later could be known.
    """
    differentiate = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if weights is not None or scale != 1.0:
        weights = torch.full(targets.shape, scale, device=hidden.device) if weights is None else weights * scale
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, weights, chunk, differentiate, loss, each)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def target_nll(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK) -> Tensor:
    """fp32[S], the NLL of each target by itself: hidden [S, H], weight [V, H], targets int64[S]."""
    nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for rows in _chunks(len(hidden), chunk):
        nll[rows] = nll_(hidden[rows] @ weight.t(), targets[rows], None, False)
    return nll


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        chunk: int,
        differentiate: bool,
        loss: TokenLoss,
        each: Tensor | None,
    ) -> Tensor:
        for_hidden, for_weight = (differentiate and needed for needed in ctx.needs_input_grad[:2])
        d_hidden = torch.empty_like(hidden) if for_hidden else None
        total = total_of(weight) if for_weight else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight and total is None else total
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device) if each is None else each
        for rows in _chunks(len(hidden), chunk):
            logits = hidden[rows] @ weight.t()
            nll[rows] = loss(logits, targets[rows], None if weights is None else weights[rows], differentiate)
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
            *[None] * 6,
        )


def _chunks(rows: int, most: int) -> list[slice]:
    """Nearly equal parts: a small last one would be slow for its size.

    They begin at multiples of 4 rows where `most` is one, 16 bytes of targets and weights: for others the loss's kernel would be
    compiled anew, in the midst of a run.
    """
    parts = max(1, math.ceil(rows / most))
    size = min(most, 4 * math.ceil(rows / parts / 4))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)] if rows else []
