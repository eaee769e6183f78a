"""Linear layers of the fused decoder layer: weight, bias and LoRA adapter, forward and both derivatives, without autograd.

    y = x W^T + b + s (x A^T) B^T        (LoRA, Hu et al., 2021; s = alpha / r)

Layers with the same input (query, key, value; gate, up) form a group and are multiplied as one where their weights lie side by
side. x: [T, K]; W: [N, K]; b: [N]; A: [r, K]; B: [N, r]; y: [T, sum of N] of the group. A parameter that does not require a
gradient gets none, and its product is not computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from talaria.train.kernels.elementwise import column_sums
from talaria.train.kernels.matmul import (
    project,
    project_backward,
    row_slices,
    total_of,
    vector_gradient,
    weight_gradients,
)
from talaria.train.kernels.operand import Form, Operand

MANY = 5120
"""Tokens of a micro-batch from which weight gradients are taken in 8 bits (train.fp8): with fewer, transposing operands and
adding up the product take more time than the product saves (benchmarks/LOG.md)."""

NARROWEST = 1024
"""Features of a layer from which train.fp8 has an effect: what rounding costs grows with them, what it saves with their square
(docs/decisions/0016-eight-bit-products.md)."""


class Linear(NamedTuple):
    """A linear layer's parameters, or the derivatives by them; None for what it lacks."""

    weight: Any
    bias: Any = None
    lora_a: Any = None
    lora_b: Any = None


def linear_of(module: nn.Module) -> Linear:
    """Return the parameters of an nn.Linear or of peft's wrapper around one."""
    layer: Any = module
    base = getattr(layer, "base_layer", layer)
    if base is layer:
        return Linear(layer.weight, layer.bias)
    return Linear(base.weight, base.bias, layer.lora_A["default"].weight, layer.lora_B["default"].weight)


def lora_scale_of(modules: Iterable[nn.Module]) -> float:
    """Return alpha / r, which is the same for every adapter of a model; 0 without adapters."""
    return next((float(module.scaling["default"]) for module in modules if hasattr(module, "lora_A")), 0.0)  # type: ignore[index]


def why_not_plain_lora(module: nn.Module) -> str | None:
    """Say why peft's wrapper around a linear layer is more than one adapter as the formula above has it; None if it is not."""
    layer: Any = module
    if type(getattr(layer, "base_layer", None)) is not nn.Linear or list(getattr(layer, "lora_A", ())) != ["default"]:
        return f"of a linear layer of type {type(module).__name__}"
    if layer.lora_variant or layer.lora_bias["default"]:
        return "its adapters are of another kind than LoRA"
    if not isinstance(layer.lora_dropout["default"], nn.Identity):
        return "train.lora.dropout is set"
    return None


def input_form(group: Sequence[Linear], fp8: bool) -> Form:
    """In which forms `forward` wants x."""
    if not fp8:
        return Form.EXACT
    return Form.ROUNDED | (Form.EXACT if _adapted(group) else Form.NONE)


def gradient_forms(group: Sequence[Linear], fp8: bool, tokens: int) -> tuple[Form, Form]:
    """In which forms `backward` and `gradients` want dy and x, in a micro-batch of so many tokens."""
    trained = any(linear.weight.requires_grad for linear in group)
    by_weight = Form.NONE if not trained else Form.ROUNDED if fp8 and tokens >= MANY else Form.EXACT
    low = Form.EXACT if _adapted(group) else Form.NONE
    dy = by_weight | low | (Form.ROUNDED if fp8 else Form.EXACT)
    if any(linear.bias is not None and linear.bias.requires_grad for linear in group):
        dy |= Form.EXACT
    return dy, by_weight | low


def forward(x: Operand, group: Sequence[Linear], scale: float, salt: int) -> tuple[Tensor, Tensor | None]:
    """Return (y, s x A^T [T, sum of r], which the backward pass wants; None without adapters). salt: see `project`."""
    y = project(x, [linear.weight for linear in group], _bias(group), salt)
    low = _down(x, group, scale)
    if low is not None:
        for place, rows, ranks in _adapters(group):
            part = y[:, rows]
            torch.addmm(part, low[:, ranks], group[place].lora_b.to(y.dtype).t(), out=part)
    return y, low


def backward(dy: Operand, group: Sequence[Linear], scale: float, salt: int) -> tuple[Tensor, Tensor | None]:
    """Return (derivative by x, that by x A^T [T, sum of r] or None). salt: as it was in `forward`."""
    dx = project_backward(dy, [linear.weight for linear in group], salt)
    adapters = _adapters(group)
    if not adapters:
        return dx, None
    assert dy.exact is not None
    d_low = torch.empty(len(dx), adapters[-1][2].stop, dtype=dx.dtype, device=dx.device)
    for place, rows, ranks in adapters:
        torch.mm(dy.exact[:, rows], group[place].lora_b.to(dx.dtype), out=d_low[:, ranks])
    d_low *= scale
    return dx.addmm_(d_low, _all_a(group, dx.dtype)), d_low


def gradients(
    group: Sequence[Linear], dy: Operand, x: Operand, low: Tensor | None, d_low: Tensor | None, scale: float
) -> list[Linear]:
    """Return the derivatives by the group's parameters; None for those that are frozen or have been added to their totals.

    `low`, `d_low`: what `forward` and `backward` returned; `low` is computed anew where it is absent.
    """
    grads = [Linear(None)] * len(group)
    slices = row_slices([linear.weight for linear in group])
    trained = [place for place, linear in enumerate(group) if linear.weight.requires_grad]
    if len(trained) == len(group):
        for place, grad in enumerate(weight_gradients([linear.weight for linear in group], dy, x)):
            grads[place] = grads[place]._replace(weight=grad)
    else:
        for place in trained:
            (grad,) = weight_gradients([group[place].weight], dy.columns(slices[place]), x)
            grads[place] = grads[place]._replace(weight=grad)
    if any(linear.bias is not None and linear.bias.requires_grad for linear in group):
        assert dy.exact is not None
        sums = column_sums(dy.exact)
        for place, (linear, rows) in enumerate(zip(group, slices, strict=True)):
            grads[place] = grads[place]._replace(bias=vector_gradient(linear.bias, sums[:, rows]))
    if d_low is not None:
        low = _down(x, group, scale) if low is None else low
        assert low is not None
        assert dy.exact is not None
        assert x.exact is not None
        _adapter_gradients(grads, group, dy.exact, x.exact, low, d_low)
    return grads


def _adapter_gradients(grads: list[Linear], group: Sequence[Linear], dy: Tensor, x: Tensor, low: Tensor, d_low: Tensor) -> None:
    """Set the derivatives by both matrices of each adapter in `grads`. All A are derived by one product, which reads x once."""
    d_a = _product(d_low, x)
    for place, rows, ranks in _adapters(group):
        d_b = _add_or_return(group[place].lora_b, _product(dy[:, rows], low[:, ranks]))
        grads[place] = grads[place]._replace(lora_a=_add_or_return(group[place].lora_a, d_a[ranks]), lora_b=d_b)


def _product(dy: Tensor, x: Tensor) -> Tensor:
    """dy.T @ x, in fp32."""
    if dy.is_cuda and dy.dtype != torch.float32:
        return torch.mm(dy.t(), x, out_dtype=torch.float32)
    return dy.t().float() @ x.float()


def _add_or_return(param: Tensor, grad: Tensor) -> Tensor | None:
    if (total := total_of(param)) is None:
        return grad.to(param.dtype)
    total.add_(grad)
    return None


def _adapters(group: Sequence[Linear]) -> list[tuple[int, slice, slice]]:
    """Return of each adapter its layer's place in the group and its columns in y and in x A^T."""
    rows = row_slices([linear.weight for linear in group])
    adapted = [place for place, linear in enumerate(group) if linear.lora_a is not None]
    ranks = row_slices([group[place].lora_a for place in adapted])
    return [(place, rows[place], rank) for place, rank in zip(adapted, ranks, strict=True)]


def _all_a(group: Sequence[Linear], dtype: torch.dtype) -> Tensor:
    parts = [linear.lora_a for linear in group if linear.lora_a is not None]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(dtype)


def _adapted(group: Sequence[Linear]) -> bool:
    return any(linear.lora_a is not None for linear in group)


def _down(x: Operand, group: Sequence[Linear], scale: float) -> Tensor | None:
    if not _adapted(group):
        return None
    assert x.exact is not None
    return (x.exact @ _all_a(group, x.exact.dtype).t()).mul_(scale)


def _bias(group: Sequence[Linear]) -> Tensor | None:
    if all(linear.bias is None for linear in group):
        return None
    weights = [linear.weight for linear in group]
    parts = [w.new_zeros(len(w)) if linear.bias is None else linear.bias for w, linear in zip(weights, group, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).to(weights[0].dtype)
