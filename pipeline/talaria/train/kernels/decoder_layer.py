"""A decoder layer (Qwen3, Llama) as one differentiable function, its derivative written out.

Autograd would keep, or torch.compile would choose, what is saved for the backward pass. Here it is decided, by `Saved`: norms are
always made again, in a kernel that runs anyway; rotated heads and the activation where memory is short; all where it is shorter
still. Gradients of weights are added to their totals inside the products. There is nothing to compile per shape.

The residual stream travels between layers as a pair whose sum has not been taken yet: the next norm's kernel takes it.
The last layer's output is looked at only where it predicts a supervised token; what follows its attention is done for no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from talaria.train.kernels.attention import PackedSequences
from talaria.train.kernels.elementwise import norm, norm_backward, rope, rope_backward, swiglu, swiglu_backward_
from talaria.train.kernels.matmul import lay_side_by_side, project, project_backward, vector_gradient, weight_gradients

Stream = tuple[Tensor, Tensor | None]
"""[T, H] twice; the second, absent before the first layer, is still to be added."""


class Saved(IntEnum):
    """What a layer saves between its forward and backward pass (its activation checkpointing policy)."""

    INPUT = 0
    """its input alone: the forward pass is repeated"""
    DEFAULT = 1
    """all but what a cheap elementwise kernel recomputes"""
    ALL = 2
    """rotated heads and the activation too"""


@dataclass(frozen=True)
class LayerShape:
    heads: int
    kv_heads: int
    width: int
    """of a head"""
    eps: float
    head_eps: float
    scale: float
    fp8: bool
    """Whether products of activations and weights are taken in e4m3; gradients of weights never are."""


@dataclass(frozen=True)
class Rotary:
    cos: Tensor
    """fp32[T, d / 2]"""
    sin: Tensor


@dataclass(frozen=True)
class TokenLayout:
    """A micro-batch's T tokens as a layer sees them."""

    packed: PackedSequences
    rotary: Rotary
    wanted: Tensor | None = None
    """int64[S], ascending: where the layer's output is wanted; absent: everywhere"""

    def pick(self, x: Tensor) -> Tensor:
        """[T, n] to [S, n]."""
        return x if self.wanted is None else x.index_select(0, self.wanted)

    def spread(self, x: Tensor) -> Tensor:
        """The derivative of `pick`: [S, n] to [T, n]."""
        if self.wanted is None:
            return x
        return x.new_zeros(len(self.rotary.cos), x.shape[1]).index_copy_(0, self.wanted, x)


class Weights(NamedTuple):
    """A layer's parameters; and, in the same order, the derivatives by them."""

    norm1: Any
    q: Any
    k: Any
    v: Any
    q_norm: Any
    k_norm: Any
    o: Any
    norm2: Any
    gate: Any
    up: Any
    down: Any


class Residuals(NamedTuple):
    """What the backward pass needs of the forward pass. x2, rstd2, gate_up and act are of the wanted tokens."""

    x: Tensor
    rstd1: Tensor
    qkv: Tensor
    attended: Tensor
    lse: Tensor
    x2: Tensor
    rstd2: Tensor
    gate_up: Tensor
    q: Tensor | None = None
    k: Tensor | None = None
    act: Tensor | None = None


def why_not(layer: nn.Module, config: Any) -> str | None:
    """Why a layer cannot run as this function; None if it can."""
    linears = [module for module in layer.modules() if "Linear" in type(module).__name__]
    if any(type(module) is not nn.Linear for module in linears):
        return "its linear layers are wrapped"
    if any(module.bias is not None for module in linears):
        return "its linear layers have biases"
    if config.model_type not in ("qwen3", "llama") or config.hidden_act != "silu":
        return f"of its architecture ({config.model_type})"
    return None


def fuse(layer: nn.Module, config: Any, fp8: bool) -> None:
    """Let the layer run as `decoder_layer` when it is called with a stream; its parameters and hooks stay.

    Called with hidden states, as transformers does to generate text, it runs as before.
    """
    attention: Any = layer.self_attn
    shape = LayerShape(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        width=attention.head_dim,
        eps=layer.input_layernorm.variance_epsilon,  # type: ignore[arg-type, union-attr]
        head_eps=attention.q_norm.variance_epsilon if hasattr(attention, "q_norm") else 0.0,
        scale=attention.scaling,
        fp8=fp8,
    )
    original = layer.forward

    def forward(x: Stream | Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, tuple):
            return decoder_layer(weights_of(layer), shape, x, *args)
        return original(x, *args, **kwargs)

    layer.forward = forward


def weights_of(layer: Any) -> Weights:
    attention, mlp = layer.self_attn, layer.mlp
    has_head_norms = hasattr(attention, "q_norm")
    return Weights(
        layer.input_layernorm.weight,
        attention.q_proj.weight,
        attention.k_proj.weight,
        attention.v_proj.weight,
        attention.q_norm.weight if has_head_norms else None,
        attention.k_norm.weight if has_head_norms else None,
        attention.o_proj.weight,
        layer.post_attention_layernorm.weight,
        mlp.gate_proj.weight,
        mlp.up_proj.weight,
        mlp.down_proj.weight,
    )


def lay_out(layer: Any) -> None:
    """Put weights that multiply the same input side by side. Call before anything else holds on to their memory."""
    attention, mlp = layer.self_attn, layer.mlp
    lay_side_by_side([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    lay_side_by_side([mlp.gate_proj.weight, mlp.up_proj.weight])


def decoder_layer(w: Weights, shape: LayerShape, stream: Stream, tokens: TokenLayout, saved: Saved) -> Stream:
    """The stream after the layer, where it is wanted."""
    x, add = stream
    out: tuple[Tensor, Tensor] = _DecoderLayer.apply(x, add, shape, tokens, saved, *w)  # type: ignore[no-untyped-call]
    return out


class _DecoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, add: Tensor | None, shape: LayerShape, tokens: TokenLayout, saved: Saved, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        w = Weights(*weights)
        x, n1, rstd1 = norm(x, w.norm1, shape.eps, add)
        res = _attend(x, n1, rstd1, w, shape, tokens, saved)
        act = swiglu(res.gate_up)
        if saved == Saved.ALL:
            res = res._replace(act=act)
        ctx.shape, ctx.tokens, ctx.saved, ctx.pair = shape, tokens, saved, add is not None
        ctx.save_for_backward(*((x,) if saved == Saved.INPUT else res), *weights)
        return res.x2, project(act, (w.down,), shape.fp8)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        skip, grad = grads
        shape: LayerShape = ctx.shape
        if ctx.saved == Saved.INPUT:
            x, *weights = ctx.saved_tensors
            w = Weights(*weights)
            _, n1, rstd1 = norm(x, w.norm1, shape.eps)
            res = _attend(x, n1, rstd1, w, shape, ctx.tokens, Saved.ALL)
        else:
            tensors, count = ctx.saved_tensors, len(Residuals._fields)
            res, w = Residuals(*tensors[:count]), Weights(*tensors[count:])
        dx, d_weights = _backward(res, w, shape, ctx.tokens, skip, grad)
        return dx, dx if ctx.pair else None, None, None, None, *d_weights


def _attend(x: Tensor, n1: Tensor, rstd1: Tensor, w: Weights, shape: LayerShape, tokens: TokenLayout, saved: Saved) -> Residuals:
    """The layer's forward pass up to the MLP's activation."""
    rotary = tokens.rotary
    qkv = project(n1, (w.q, w.k, w.v), shape.fp8)
    q, k = rope(qkv, w.q_norm, w.k_norm, rotary.cos, rotary.sin, shape.heads, shape.kv_heads, shape.head_eps)
    attended, lse = tokens.packed.forward(q, k, _values(qkv, shape), shape.scale)
    x2, n2, rstd2 = norm(tokens.pick(x), w.norm2, shape.eps, project(tokens.pick(attended.flatten(1)), (w.o,), shape.fp8))
    res = Residuals(x, rstd1, qkv, attended, lse, x2, rstd2, project(n2, (w.gate, w.up), shape.fp8))
    return res._replace(q=q, k=k) if saved == Saved.ALL else res


def _values(qkv: Tensor, shape: LayerShape) -> Tensor:
    return qkv.view(len(qkv), shape.heads + 2 * shape.kv_heads, shape.width)[:, -shape.kv_heads :]


def _backward(
    res: Residuals, w: Weights, shape: LayerShape, tokens: TokenLayout, skip: Tensor, grad: Tensor
) -> tuple[Tensor, Weights]:
    """`skip`, `grad`: derivatives by the two halves of the output. Overwrites res.gate_up."""
    d_act, d_gate_up = project_backward(grad, (w.down,), shape.fp8), res.gate_up
    swiglu_backward_(d_gate_up, d_act, again=res.act is None)
    act = d_act if res.act is None else res.act
    (d_down,) = weight_gradients((w.down,), grad, act)
    dx2, n2, d_norm2 = norm_backward(res.x2, res.rstd2, w.norm2, project_backward(d_gate_up, (w.gate, w.up), shape.fp8), skip)
    d_gate, d_up = weight_gradients((w.gate, w.up), d_gate_up, n2)

    d_attended = tokens.spread(project_backward(dx2, (w.o,), shape.fp8)).view_as(res.attended)
    (d_o,) = weight_gradients((w.o,), dx2, tokens.pick(res.attended.flatten(1)))
    heads = (res.qkv, w.q_norm, w.k_norm, tokens.rotary.cos, tokens.rotary.sin)
    q, k = res.q, res.k
    if q is None or k is None:
        q, k = rope(*heads, shape.heads, shape.kv_heads, shape.head_eps)
    d_heads = tokens.packed.backward(d_attended, q, k, _values(res.qkv, shape), res.attended, res.lse, shape.scale)
    d_qkv, d_q_norm, d_k_norm = rope_backward(*heads, *d_heads, shape.head_eps)

    dn1 = project_backward(d_qkv, (w.q, w.k, w.v), shape.fp8)
    dx, n1, d_norm1 = norm_backward(res.x, res.rstd1, w.norm1, dn1, tokens.spread(dx2))
    d_q, d_k, d_v = weight_gradients((w.q, w.k, w.v), d_qkv, n1)
    vectors = [
        vector_gradient(weight, parts)
        for weight, parts in ((w.norm1, d_norm1), (w.q_norm, d_q_norm), (w.k_norm, d_k_norm), (w.norm2, d_norm2))
    ]
    return dx, Weights(vectors[0], d_q, d_k, d_v, vectors[1], vectors[2], d_o, vectors[3], d_gate, d_up, d_down)
