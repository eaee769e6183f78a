"""A decoder layer (Qwen3, Qwen2, Llama, Mistral) as one differentiable function with a hand-written derivative.

Autograd would keep, or torch.compile would choose, what is saved for the backward pass. Here it is decided, by `Saved`: norms are
always made again, in a kernel that runs anyway; rotated heads and the activation where memory is short; all where it is shorter
still. Gradients of weights are added to their totals inside the products. There is nothing to compile per shape.

Biases, LoRA adapters and frozen parameters are handled by linear.py. The residual stream travels between layers as a pair whose
sum has not been taken yet: the next norm's kernel takes it. With layers f and g: the first returns (x, f(x)), the second
begins by adding them, s = x + f(x), in the kernel that normalises s, and returns (s, g(s)). So no kernel only adds.
The backward pass gives both halves of a pair the same derivative. The last layer's output is used only where it predicts a
supervised token; what follows its attention is computed for no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from talaria.train.kernels import linear
from talaria.train.kernels.attention import PackedSequences
from talaria.train.kernels.eight_bits import operand
from talaria.train.kernels.elementwise import norm, norm_backward, rope, rope_backward, swiglu, swiglu_backward_
from talaria.train.kernels.linear import Linear, gradient_forms, input_form, linear_of
from talaria.train.kernels.matmul import keep_in_eight_bits, lay_side_by_side, vector_gradient
from talaria.train.kernels.operand import Form, Operand
from talaria.train.kernels.random_bits import salt_of

FAMILIES = ("qwen3", "qwen2", "llama", "mistral")
"""Model types whose layers are this function."""

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
    """Whether products are taken in e4m3: of activations and weights always, gradients of weights in large micro-batches."""
    lora_scale: float
    window: int | None
    """How many tokens, itself among them, a token attends to at most; None for all before it."""
    number: int
    """Of the layer, from 0."""


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
    step: int = 0
    """Of the optimiser. Weights are rounded to 8 bits by other random bits in each."""

    @property
    def count(self) -> int:
        return len(self.rotary.cos)

    def pick(self, x: Tensor) -> Tensor:
        """[T, n] to [S, n]."""
        return x if self.wanted is None else x.index_select(0, self.wanted)

    def spread(self, x: Tensor) -> Tensor:
        """The derivative of `pick`: [S, n] to [T, n]."""
        if self.wanted is None:
            return x
        return x.new_zeros(self.count, x.shape[1]).index_copy_(0, self.wanted, x)


class Weights(NamedTuple):
    """A layer's parameters; and, in the same order, the derivatives by them."""

    norm1: Any
    norm2: Any
    q_norm: Any
    k_norm: Any
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear

    def tensors(self) -> list[Any]:
        """Lay all end to end, as autograd wants them."""
        return [*self[:_VECTORS], *(tensor for group in self[_VECTORS:] for tensor in group)]

    @classmethod
    def of_tensors(cls, tensors: Sequence[Any]) -> Weights:
        """Undo `tensors`."""
        size = len(Linear._fields)
        linears = [Linear(*tensors[start : start + size]) for start in range(_VECTORS, len(tensors), size)]
        return cls(*tensors[:_VECTORS], *linears)

    @property
    def qkv(self) -> tuple[Linear, ...]:
        return self.q, self.k, self.v

    @property
    def gate_up(self) -> tuple[Linear, ...]:
        return self.gate, self.up

    @property
    def groups(self) -> tuple[tuple[Linear, ...], ...]:
        """Those that share their input are a group."""
        return self.qkv, (self.o,), self.gate_up, (self.down,)


_VECTORS = 4
"""How many fields of `Weights` come before the linear layers."""


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
    low_qkv: Tensor | None = None
    """This and the others: the LoRA adapters' inner activations (linear.py)."""
    low_o: Tensor | None = None
    low_gate_up: Tensor | None = None
    low_down: Tensor | None = None
    q: Tensor | None = None
    k: Tensor | None = None
    act: Tensor | None = None
    act_rounded: Tensor | None = None
    """This and the others: parts of operands in 8 bits, where gradients of weights are."""
    act_scale: Tensor | None = None
    attended_scale: Tensor | None = None


def why_not(layer: nn.Module, config: Any) -> str | None:
    """Say why a layer cannot run as this function; None if it can."""
    if config.model_type not in FAMILIES or config.hidden_act != "silu":
        return f"of its architecture ({config.model_type})"
    unfit = (linear.why_not_plain_lora(module) for module in _linears(layer) if type(module) is not nn.Linear)
    return next((why for why in unfit if why), None)


def fuse(layer: nn.Module, config: Any, fp8: bool) -> None:
    """Let the layer run as `decoder_layer` when it is called with a stream; its parameters and hooks stay.

    Called with hidden states, as transformers does to generate text, it runs as before. Products are taken in 8 bits only where
    gradients are wanted: a held-out loss is that of the model as it is exported and used.
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
        lora_scale=linear.lora_scale_of(_linears(layer)),
        window=_window(attention, config),
        number=attention.layer_idx,
    )
    exact, original = replace(shape, fp8=False), layer.forward

    def forward(x: Stream | Tensor, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, tuple):
            return decoder_layer(weights_of(layer), shape if torch.is_grad_enabled() else exact, x, *args)
        return original(x, *args, **kwargs)

    layer.forward = forward


def _linears(layer: Any) -> list[nn.Module]:
    attention, mlp = layer.self_attn, layer.mlp
    projections = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    return [*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _window(attention: Any, config: Any) -> int | None:
    """Qwen gives each layer its own window or none, Mistral all the same."""
    window: int | None = getattr(attention, "sliding_window", None)
    return config.sliding_window if config.model_type == "mistral" else window


def weights_of(layer: Any) -> Weights:
    attention = layer.self_attn
    return Weights(
        layer.input_layernorm.weight,
        layer.post_attention_layernorm.weight,
        attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        *(linear_of(module) for module in _linears(layer)),
    )


def lay_out(layer: Any) -> None:
    """Put weights that multiply the same input side by side. Call before anything else holds on to their memory."""
    weights = weights_of(layer)
    for group in (weights.qkv, weights.gate_up):
        lay_side_by_side([part.weight for part in group])


def keep_rounded(layer: Any, *, values: bool) -> None:
    """Round a laid out layer's weights to 8 bits once after each update: their scales alone, or their `values` too."""
    for group in weights_of(layer).groups:
        keep_in_eight_bits([part.weight for part in group], values=values)


def rounded_bytes(layer: Any) -> int:
    """Return how much the values take."""
    return sum(part.weight.numel() for group in weights_of(layer).groups for part in group)


def decoder_layer(w: Weights, shape: LayerShape, stream: Stream, tokens: TokenLayout, saved: Saved) -> Stream:
    """The stream after the layer, where it is wanted."""
    x, add = stream
    out: tuple[Tensor, Tensor] = _DecoderLayer.apply(x, add, shape, tokens, saved, *w.tensors())  # type: ignore[no-untyped-call]
    return out


class _DecoderLayer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, add: Tensor | None, shape: LayerShape, tokens: TokenLayout, saved: Saved, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        w = Weights.of_tensors(weights)
        x, n1, rstd1 = norm(x, w.norm1, shape.eps, add, input_form(w.qkv, shape.fp8))
        res = _attend(x, n1, rstd1, w, shape, tokens, saved)
        kept = gradient_forms((w.down,), shape.fp8, tokens.count)[1] if saved == Saved.ALL else Form.NONE
        act = swiglu(res.gate_up, input_form((w.down,), shape.fp8) | kept)
        y, low = linear.forward(act, (w.down,), shape.lora_scale, _salt(shape, tokens, 3))
        res = _keep(res._replace(low_down=low), act, kept)
        ctx.shape, ctx.tokens, ctx.saved, ctx.pair = shape, tokens, saved, add is not None
        ctx.save_for_backward(*((x,) if saved == Saved.INPUT else res), *weights)
        return res.x2, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        skip, grad = grads
        shape: LayerShape = ctx.shape
        if ctx.saved == Saved.INPUT:
            x, *weights = ctx.saved_tensors
            w = Weights.of_tensors(weights)
            _, n1, rstd1 = norm(x, w.norm1, shape.eps, None, input_form(w.qkv, shape.fp8))
            res = _attend(x, n1, rstd1, w, shape, ctx.tokens, Saved.ALL)
        else:
            tensors, count = ctx.saved_tensors, len(Residuals._fields)
            res, w = Residuals(*tensors[:count]), Weights.of_tensors(tensors[count:])
        dx, d_weights = _backward(res, w, shape, ctx.tokens, skip, grad)
        return dx, dx if ctx.pair else None, None, None, None, *d_weights.tensors()


def _attend(x: Tensor, n1: Operand, rstd1: Tensor, w: Weights, shape: LayerShape, tokens: TokenLayout, saved: Saved) -> Residuals:
    """The layer's forward pass up to the MLP's activation."""
    rotary, lora = tokens.rotary, shape.lora_scale
    qkv, low_qkv = linear.forward(n1, w.qkv, lora, _salt(shape, tokens, 0))
    q, k = rope(qkv, w.q_norm, w.k_norm, rotary.cos, rotary.sin, shape.heads, shape.kv_heads, shape.head_eps)
    attended, lse = tokens.packed.forward(q, k, _values(qkv, shape), shape.scale, shape.window)
    heads = operand(tokens.pick(attended.flatten(1)), input_form((w.o,), shape.fp8))
    out, low_o = linear.forward(heads, (w.o,), lora, _salt(shape, tokens, 1))
    x2, n2, rstd2 = norm(tokens.pick(x), w.norm2, shape.eps, out, input_form(w.gate_up, shape.fp8))
    gate_up, low_gate_up = linear.forward(n2, w.gate_up, lora, _salt(shape, tokens, 2))
    res = Residuals(x, rstd1, qkv, attended, lse, x2, rstd2, gate_up, low_qkv, low_o, low_gate_up, attended_scale=heads.scale)
    return res._replace(q=q, k=k) if saved == Saved.ALL else res


def _salt(shape: LayerShape, tokens: TokenLayout, group: int) -> int:
    """From which the random bits of a group of matrices are made: its place in `Weights.groups`."""
    return salt_of(tokens.step, shape.number, group)


def _keep(res: Residuals, act: Operand, form: Form) -> Residuals:
    if Form.EXACT in form:
        res = res._replace(act=act.exact)
    return res._replace(act_rounded=act.rounded, act_scale=act.scale) if Form.ROUNDED in form else res


def _values(qkv: Tensor, shape: LayerShape) -> Tensor:
    return qkv.view(len(qkv), shape.heads + 2 * shape.kv_heads, shape.width)[:, -shape.kv_heads :]


def _backward(
    res: Residuals, w: Weights, shape: LayerShape, tokens: TokenLayout, skip: Tensor, grad: Tensor
) -> tuple[Tensor, Weights]:
    """`skip`, `grad`: derivatives by the two halves of the output. Overwrites res.gate_up."""
    scale = shape.lora_scale
    qkv, o, gate_up, down = (gradient_forms(group, shape.fp8, tokens.count) for group in w.groups)
    dy = operand(grad, down[0])
    d_act, d_low_down = linear.backward(dy, (w.down,), scale, _salt(shape, tokens, 3))
    kept = res.act is not None or res.act_rounded is not None
    d_gate_up, act = swiglu_backward_(res.gate_up, d_act, gate_up[0], Form.NONE if kept else down[1])
    if kept:
        act = Operand(res.act, res.act_rounded, res.act_scale)
    (d_down,) = linear.gradients((w.down,), dy, act, res.low_down, d_low_down, scale)
    del d_act, act
    dn2, d_low_gate_up = linear.backward(d_gate_up, w.gate_up, scale, _salt(shape, tokens, 2))
    dx2, n2, d_norm2 = norm_backward(res.x2, res.rstd2, w.norm2, dn2, skip, gate_up[1])
    d_gate, d_up = linear.gradients(w.gate_up, d_gate_up, n2, res.low_gate_up, d_low_gate_up, scale)
    del d_gate_up, n2

    dy = operand(dx2, o[0])
    d_attended, d_low_o = linear.backward(dy, (w.o,), scale, _salt(shape, tokens, 1))
    heads = Operand(tokens.pick(res.attended.flatten(1)), scale=res.attended_scale if Form.ROUNDED in o[1] else None)
    (d_o,) = linear.gradients((w.o,), dy, heads, res.low_o, d_low_o, scale)
    d_heads, d_q_norm, d_k_norm = _attention_backward(res, w, shape, tokens, tokens.spread(d_attended).view_as(res.attended))

    dy = operand(d_heads, qkv[0])
    dn1, d_low_qkv = linear.backward(dy, w.qkv, scale, _salt(shape, tokens, 0))
    dx, n1, d_norm1 = norm_backward(res.x, res.rstd1, w.norm1, dn1, tokens.spread(dx2), qkv[1])
    d_q, d_k, d_v = linear.gradients(w.qkv, dy, n1, res.low_qkv, d_low_qkv, scale)
    parts = zip((w.norm1, w.norm2, w.q_norm, w.k_norm), (d_norm1, d_norm2, d_q_norm, d_k_norm), strict=True)
    vectors = [vector_gradient(weight, part) for weight, part in parts]
    return dx, Weights(vectors[0], vectors[1], vectors[2], vectors[3], d_q, d_k, d_v, d_o, d_gate, d_up, d_down)


def _attention_backward(
    res: Residuals, w: Weights, shape: LayerShape, tokens: TokenLayout, d_attended: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Derivatives by the projections' output and by the weights of the heads' norms (to be summed over rows)."""
    heads = (res.qkv, w.q_norm, w.k_norm, tokens.rotary.cos, tokens.rotary.sin)
    q, k = res.q, res.k
    if q is None or k is None:
        q, k = rope(*heads, shape.heads, shape.kv_heads, shape.head_eps)
    values = _values(res.qkv, shape)
    d_heads = tokens.packed.backward(d_attended, q, k, values, res.attended, res.lse, shape.scale, shape.window)
    return rope_backward(*heads, *d_heads, shape.head_eps)
