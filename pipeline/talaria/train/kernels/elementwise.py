"""What surrounds the matrix products of a decoder layer: norms, rotary embedding, SwiGLU, each with its derivative.

On a GPU with Triton these are fused kernels (triton_kernels/); elsewhere the plain PyTorch below, which is also the
reference that the kernels are tested against. Arithmetic is fp32 whatever the inputs are, and rounds once, at the end.

T: tokens of a micro-batch; H: hidden width; d: width of a head; F: width of the MLP.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from talaria.train.kernels.operand import Form, Operand, plain_operand


@cache
def has_triton() -> bool:
    return torch.cuda.is_available() and find_spec("triton") is not None


def fused(tensor: Tensor) -> Any:
    """The Triton kernels, where `tensor` is on a device that runs them; None for the plain twins."""
    if not (tensor.is_cuda and has_triton()):
        return None
    from talaria.train.kernels import triton_kernels as kernels_triton

    return kernels_triton


def norm(
    x: Tensor, weight: Tensor, eps: float, add: Tensor | None = None, form: Form = Form.EXACT
) -> tuple[Tensor, Operand, Tensor]:
    """RMSNorm (Zhang & Sennrich, 2019) of s = x + add. Returns (s, norm, 1 / rms as fp32[T]); x, add: [T, H]."""
    if kernels := fused(x):
        return kernels.norm(x, weight, eps, add, form)  # type: ignore[no-any-return]
    total = x if add is None else x + add
    z = total.float()
    rstd = torch.rsqrt(z.square().mean(-1) + eps)
    return total, plain_operand(z * rstd[:, None] * weight.float(), form, x.dtype), rstd


def norm_backward(
    x: Tensor, rstd: Tensor, weight: Tensor, grad: Tensor, skip: Tensor, form: Form = Form.EXACT
) -> tuple[Tensor, Operand, Tensor]:
    """Returns (skip + derivative by x, the norm again, fp32[any, H] whose sum over rows is the derivative by the weight)."""
    if kernels := fused(x):
        return kernels.norm_backward(x, rstd, weight, grad, skip, form)  # type: ignore[no-any-return]
    x_hat, g, w = x.float() * rstd[:, None], grad.float(), weight.float()
    scaled = g * w
    dx = (scaled - x_hat * (scaled * x_hat).mean(-1, keepdim=True)) * rstd[:, None]
    return (skip.float() + dx).to(x.dtype), plain_operand(x_hat * w, form, x.dtype), g * x_hat


def rope(
    qkv: Tensor, wq: Tensor | None, wk: Tensor | None, cos: Tensor, sin: Tensor, q_heads: int, k_heads: int, eps: float
) -> tuple[Tensor, Tensor]:
    """Norm of each query and key head (where there are weights, [d]), then rotary embedding (Su et al., 2021).

    qkv: [T, (q_heads + 2 * k_heads) * d]; cos, sin: fp32[T, d / 2]. Returns q [T, q_heads, d] and k [T, k_heads, d].
    """
    if kernels := fused(qkv):
        return kernels.rope(qkv, wq, wk, cos, sin, q_heads, k_heads, eps)  # type: ignore[no-any-return]
    q, k, _ = _split_heads(qkv, q_heads, k_heads, 2 * cos.shape[1])
    return _rotate(_head_norm(q, wq, eps), cos, sin).to(qkv.dtype), _rotate(_head_norm(k, wk, eps), cos, sin).to(qkv.dtype)


def rope_backward(
    qkv: Tensor, wq: Tensor | None, wk: Tensor | None, cos: Tensor, sin: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, eps: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the derivatives by qkv, dv in its place unchanged, and by the weights, as fp32[any, d] to be summed over rows."""
    if kernels := fused(qkv):
        return kernels.rope_backward(qkv, wq, wk, cos, sin, dq, dk, dv, eps)  # type: ignore[no-any-return]
    q, k, _ = _split_heads(qkv, dq.shape[1], dk.shape[1], 2 * cos.shape[1])
    dq_in, dwq = _head_norm_backward(q, wq, _rotate(dq.float(), cos, -sin), eps)
    dk_in, dwk = _head_norm_backward(k, wk, _rotate(dk.float(), cos, -sin), eps)
    return torch.cat([part.flatten(1).to(qkv.dtype) for part in (dq_in, dk_in, dv)], dim=1), dwq, dwk


def swiglu(gate_up: Tensor, form: Form = Form.EXACT) -> Operand:
    """silu(gate) * up (Shazeer, 2020); gate_up: [T, 2 * F], gate first. Returns [T, F]."""
    if kernels := fused(gate_up):
        return kernels.swiglu(gate_up, form)  # type: ignore[no-any-return]
    gate, up = gate_up.float().chunk(2, dim=1)
    return plain_operand(silu(gate) * up, form, gate_up.dtype)


def swiglu_backward_(gate_up: Tensor, grad: Tensor, form: Form, again: Form) -> tuple[Operand, Operand]:
    """Return the derivative by gate_up in `form` and the output in the form `again`; grad: the derivative by the output.

    What is wanted exactly takes the place of gate_up and of grad.
    """
    if kernels := fused(gate_up):
        return kernels.swiglu_backward_(gate_up, grad, form, again)  # type: ignore[no-any-return]
    gate, up = gate_up.float().chunk(2, dim=1)
    sig, g = torch.sigmoid(gate), grad.float()
    derivative = torch.cat([g * up * sig * (1 + gate * (1 - sig)), g * gate * sig], dim=1)
    made = plain_operand(derivative, form, gate_up.dtype), plain_operand(silu(gate) * up, again, grad.dtype)
    return _in_place(gate_up, made[0]), _in_place(grad, made[1])  # the output is to the bit what the forward pass made


def softmax_nll_(logits: Tensor, targets: Tensor, weights: Tensor | None, want_grad: bool) -> Tensor:
    """fp32[rows] weighted negative log-likelihoods; in place, `logits` become the derivatives of their sum if wanted.

    logits: [rows, V]; targets: int64[rows]; weights: float32[rows] or None for ones.
    """
    if kernels := fused(logits):
        return kernels.softmax_nll_(logits, targets, weights, want_grad)  # type: ignore[no-any-return]
    z = logits.float()
    lse = torch.logsumexp(z, dim=-1)
    nll = lse - z.gather(1, targets[:, None]).squeeze(1)
    if want_grad:
        grad = torch.exp(z - lse[:, None])
        grad.scatter_add_(1, targets[:, None], torch.full_like(nll, -1.0)[:, None])
        logits.copy_(grad if weights is None else grad * weights[:, None])
    return nll if weights is None else nll * weights


def column_sums(x: Tensor) -> Tensor:
    """fp32[any, n] whose sum over rows is that of x: [rows, n], any dtype."""
    if kernels := fused(x):
        return kernels.column_sums(x)  # type: ignore[no-any-return]
    return x.float().sum(0, keepdim=True)


def add_rows_(total: Tensor, parts: Tensor) -> None:
    """total += the sum of parts over rows. total: [n], any dtype; parts: fp32[any, n], may be strided over rows."""
    if kernels := fused(total):
        kernels.add_rows_(total, parts)
    else:
        total += parts.sum(0)


def _in_place(memory: Tensor, operand: Operand) -> Operand:
    return operand if operand.exact is None else operand._replace(exact=memory.copy_(operand.exact))


def _split_heads(qkv: Tensor, q_heads: int, k_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    heads = qkv.view(len(qkv), q_heads + 2 * k_heads, width)
    return heads[:, :q_heads], heads[:, q_heads : q_heads + k_heads], heads[:, q_heads + k_heads :]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: fp32[T, heads, d], its halves as real and imaginary parts."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def _head_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    z = x.float()
    if weight is None:
        return z
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps) * weight.float()


def _head_norm_backward(x: Tensor, weight: Tensor | None, grad: Tensor, eps: float) -> tuple[Tensor, Tensor | None]:
    if weight is None:
        return grad, None
    z = x.float()
    rstd = torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)
    x_hat, scaled = z * rstd, grad * weight.float()
    return (scaled - x_hat * (scaled * x_hat).mean(-1, keepdim=True)) * rstd, (grad * x_hat).flatten(0, 1)
