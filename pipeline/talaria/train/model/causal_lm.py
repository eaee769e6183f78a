"""A Hugging Face causal language model as the trainer runs it: packed conversations in, the sum of their losses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import embedding

from talaria.common.errors import ConfigError
from talaria.train.batching.packing import MicroBatch
from talaria.train.kernels import attention, linear
from talaria.train.kernels import decoder_layer as kernels_layer
from talaria.train.kernels import elementwise as kernels
from talaria.train.kernels.context_parallel import ContextGroup, SpreadSequences
from talaria.train.kernels.decoder_layer import Saved, Stream, TokenLayout
from talaria.train.kernels.matmul import total_of
from talaria.train.kernels.torch_internals import embedding_gradient
from talaria.train.model.activation_memory import USABLE, ActivationMemory, head_width
from talaria.train.model.adapter_dropout import token_keys
from talaria.train.model.lora import LoraOptions
from talaria.train.model.loss import CHUNK, linear_cross_entropy, nll_, target_nll, token_loss
from talaria.train.model.transformers_internals import recompute


@dataclass(frozen=True)
class ModelOptions:
    """How a model runs; the fields mean what the settings `train.*` of the same names do."""

    precision: Literal["mixed", "fp32", "bf16"]
    activation_checkpointing: Literal["auto", "off", "selective", "full"] = "auto"
    kernels: Literal["auto", "plain"] = "auto"
    deterministic: bool = False
    fp8: bool = False
    lora: LoraOptions | None = None
    loss: str = "nll"
    trainable: Sequence[str] = ("*",)
    freeze: Sequence[str] = ()


class CausalLM(nn.Module):
    """`forward(batch)` is the sum of weighted NLL over the batch's supervised targets, an fp32 scalar.

    Everything, the head included, runs inside `forward`, so that hooks on this module (FSDP's) see every use of a weight.
    """

    def __init__(self, hf: nn.Module, options: ModelOptions) -> None:
        super().__init__()
        self.hf = hf
        self.recompute = options.activation_checkpointing
        self.plain_because = "train.kernels is plain" if options.kernels == "plain" else self._why_plain()
        self.deterministic = options.deterministic
        self.train_loss = token_loss(options.loss)
        self.fp8 = options.fp8 and self.core.config.hidden_size >= linear.NARROWEST
        self.too_narrow = options.fp8 and not self.fp8
        """Whether products that were to be in 8 bits are not, since the model is too small to gain by it."""
        self.stored_in_bf16 = False
        """Whether every weight is a bf16 number, as its file has it."""
        # Granite divides its logits; a factor on what the head takes is the same.
        self.logit_scale = 1.0 / getattr(self.core.config, "logits_scaling", 1.0)
        self.step = 0
        """Of the optimiser, counted from 0: what adapters drop and how weights are rounded to 8 bits depend on it."""
        self._dropout = token_keys(hf)
        self.target_losses: Tensor | None = None
        """fp32[S], what the last micro-batch's loss is the sum of; kept where targets come from several sources."""
        self.context = ContextGroup()
        """The ranks that share a micro-batch's tokens while training."""
        self.transient_bytes = 0
        """Bytes of a step beside its activations that PyTorch's allocator does not count before it."""
        self._budget_bytes: int | None = None
        itemsize = 4 if options.precision == "fp32" else 2
        self.activations = ActivationMemory.of(self.core.config, fused=self.fused, itemsize=itemsize)
        if self.fused:
            for layer in layers(self):
                kernels_layer.fuse(layer, self.core.config, fp8=self.fp8)

    @property
    def core(self) -> Any:
        """The Hugging Face ForCausalLM, without the adapters' wrapper."""
        get_base = getattr(self.hf, "get_base_model", None)
        return get_base() if get_base else self.hf

    @property
    def fused(self) -> bool:
        """Whether layers run as one function each, or as transformers wrote them."""
        return self.plain_because is None

    def forward(self, batch: MicroBatch, scale: float = 1.0) -> Tensor:
        """Sum of weighted losses, times `scale`; held-out ones, in evaluation mode, are always NLL.

        To be differentiated as it is where gradients go straight into totals.
        """
        if self.training and self._dropout:
            self._dropout.set(batch, self.step)
        hidden, loss = self.hidden(batch, batch.positions), self.train_loss if self.training else nll_
        self.target_losses = None if batch.sources is None else torch.empty(len(batch.targets), device=hidden.device)
        head, each = self.core.lm_head.weight, self.target_losses
        return linear_cross_entropy(hidden, head, batch.targets, batch.weights, scale=scale, loss=loss, each=each)

    @torch.no_grad()
    def conversation_nll(self, batch: MicroBatch) -> Tensor:
        """Return fp64[n], the NLL of each conversation summed over its supervised targets."""
        losses = target_nll(self.hidden(batch, batch.positions), self.core.lm_head.weight, batch.targets)
        owner = torch.searchsorted(batch.cu_seqlens, batch.positions, right=True, out_int32=True) - 1
        sums = torch.zeros(len(batch.cu_seqlens) - 1, dtype=torch.float64, device=losses.device)
        return _add_rows(sums, owner, losses.double())

    def logits(self, batch: MicroBatch) -> Tensor:
        """Return [T, V], the logits of every packed token. Reference for tests: training never makes them."""
        out: Tensor = self.core.lm_head(self.hidden(batch))
        return out

    def hidden(self, batch: MicroBatch, wanted: Tensor | None = None) -> Tensor:
        """Return [T, H], what the head takes; with `wanted`, ascending int64[S]: [S, H], at these tokens only."""
        # Ranks that share the tokens save the same: what one makes again in the backward pass, it makes together with the others.
        shared = (max(batch.spread), CHUNK) if batch.spread else None
        saved = self.saved_per_layer(*(shared or (len(batch.input_ids), len(batch.positions))))
        if self.fused:
            x, add = self._fused_stream(batch, saved, wanted)
            out: Tensor = self.core.model.norm(x if add is None else x + add)
        else:
            x = self._plain_hidden(batch, saved)
            out = x if wanted is None else x.index_select(0, wanted)
        return out if self.logit_scale == 1.0 else out * self.logit_scale

    def _fused_stream(self, batch: MicroBatch, saved: Sequence[Saved], wanted: Tensor | None) -> Stream:
        """[T or S, H] twice, their sum the last layer's output before the final norm; the second may be None."""
        body = self.core.model
        x = _Embedding.apply(batch.input_ids, body.embed_tokens.weight)  # type: ignore[no-untyped-call]
        # In fp32, whatever the stream's dtype; its two halves are equal.
        cos, sin = body.rotary_emb(torch.empty(0, device=x.device), batch.position_ids.unsqueeze(0))
        half = cos.shape[-1] // 2
        rotary = kernels_layer.Rotary(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
        kernel, _ = attention.choose(x.device.type, x.dtype, 2 * half, self.deterministic)
        features = self.core.config.num_attention_heads * 2 * half // self.context.size
        packed = attention.pack(batch.cu_seqlens, batch.max_seqlen, kernel, features)
        if batch.spread:
            packed = SpreadSequences(packed.cu_seqlens, packed.max_seqlen, packed.kernel, self.context, batch.spread)
        tokens = TokenLayout(packed, rotary, step=self.step)
        stream: Stream = (x, None)
        *earlier, (last, last_saved) = zip(body.layers, saved, strict=True)
        for layer, layer_saved in earlier:
            stream = layer(stream, tokens, layer_saved)
        stream = last(stream, replace(tokens, wanted=wanted), last_saved)
        return stream

    def _plain_hidden(self, batch: MicroBatch, saved_per_layer: Sequence[Saved]) -> Tensor:
        """Run the family's own forward pass, final norm included: scales, windows and rotary embeddings are transformers'."""
        for layer, saved in zip(layers(self), saved_per_layer, strict=True):
            recompute(layer, saved == Saved.INPUT and torch.is_grad_enabled())
        out = self.core.model(
            input_ids=batch.input_ids.unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            use_cache=False,
            cu_seq_lens_q=batch.cu_seqlens,
            max_length_q=batch.max_seqlen,
            deterministic=self.deterministic,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    def saved_per_layer(self, tokens: int, targets: int) -> list[Saved]:
        """What each layer saves for the backward pass of a micro-batch: as much as fits where the choice is automatic."""
        count = len(layers(self))
        weight = self.core.lm_head.weight
        if not torch.is_grad_enabled() or (self.recompute == "auto" and not weight.is_cuda):
            return [Saved.DEFAULT] * count
        if self.recompute != "auto":
            again = {"full": count, "selective": count // 2}.get(self.recompute, 0)
            return [Saved.INPUT] * again + [Saved.ALL] * (count - again)
        if self._budget_bytes is None:  # the first backward pass: weights, gradients and optimiser state are in place
            total = torch.cuda.get_device_properties(weight.device).total_memory
            budget = int(USABLE * total) - torch.cuda.memory_allocated(weight.device) - self.transient_bytes
            self._budget_bytes = self.context.least(budget, weight.device)
        return self.activations.saved_per_layer(self._budget_bytes, tokens, targets)

    def _why_plain(self) -> str | None:
        return next((why for layer in layers(self) if (why := kernels_layer.why_not(layer, self.core.config))), None)


class _Embedding(torch.autograd.Function):
    """Rows of a table; the table's gradient goes straight to its running total where it has one."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids, table)
        return embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None]:
        (grad,) = grads
        ids, table = ctx.saved_tensors
        total = total_of(table)
        if total is not None and total.dtype == torch.float32:
            _add_rows(total, ids, grad.float())
            return None, None
        dense = embedding_gradient(grad, ids, len(table))
        if total is None:
            return None, dense
        total.add_(dense)
        return None, None


def _add_rows(total: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Add values[i] to total[rows[i]] for each i, rows that occur again too, in the same order of sums in every run.

    Of PyTorch's two functions for it, index_add_ does so on a CPU and index_put_, which sorts, on a GPU. On the other device the
    threads of each add as they come, so that two runs differ in the last digits.
    """
    if total.is_cuda:
        return total.index_put_((rows,), values, accumulate=True)
    return total.index_add_(0, rows, values)


def require_fixed_positions(model: CausalLM, longest: int) -> None:
    """Raise ConfigError if position encodings of conversations up to `longest` tokens depend on what they are packed with.

    Dynamic and long rotary embeddings (rope_type dynamic, longrope) change all frequencies of a batch that holds a conversation
    beyond a length, so that the same conversation would be trained in another way in another batch.
    """
    config = model.core.config
    parameters = getattr(config, "rope_parameters", None) or {}
    for rope in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        kind = str(rope.get("rope_type"))
        limit = {
            "dynamic": config.max_position_embeddings,
            "longrope": rope.get("original_max_position_embeddings", config.max_position_embeddings),
        }.get(kind)
        if limit is not None and longest > limit:
            raise ConfigError(
                f"the model's position encoding ({kind}) changes beyond {limit} tokens; the longest conversation has {longest}: "
                f"set tokenize.max_tokens to {limit} or less."
            )


def layers(model: CausalLM) -> list[nn.Module]:
    """The decoder layers, in order: the units of sharding."""
    return list(model.core.model.layers)


def lay_out(model: CausalLM) -> None:
    """Order a whole (not sharded) model's weights in memory as its products want them, once their dtype is final."""
    if model.fused:
        for layer in layers(model):
            kernels_layer.lay_out(layer)


def keep_rounded(model: CausalLM, room: float | None) -> float | None:
    """With fp8, round laid out weights once after each update, not at each use; return what is left of `room`.

    room: bytes for activations (None: they are not counted). Where a large micro-batch's would not fit beside the rounded
    weights, only scales are kept.
    """
    if not model.fp8:
        return room
    left = None if room is None else room - sum(map(kernels_layer.rounded_bytes, layers(model)))
    values = left is None or model.activations.tokens_without_recomputation(left) >= linear.MANY
    for layer in layers(model):
        kernels_layer.keep_rounded(layer, values=values)
    return left if values else room


def sum_loss(model: nn.Module, batch: MicroBatch, scale: float = 1.0) -> Tensor:
    """`scale` * sum of weighted NLL over the batch's targets (fp32 scalar), through the module's hooks."""
    loss: Tensor = model(batch, scale)
    return loss


def describe(model: CausalLM) -> str:
    """One line: which kernels run, and why."""
    weight = model.core.lm_head.weight
    dtype = torch.bfloat16 if isinstance(weight, DTensor) else weight.dtype
    kernel, because = attention.choose(weight.device.type, dtype, head_width(model.core.config), model.deterministic)
    where = "Triton" if weight.is_cuda and kernels.has_triton() else "plain PyTorch (no GPU with Triton)"
    width = model.core.config.hidden_size
    narrow = f", products in 16 bits, as layers of {width} features gain nothing in 8" if model.too_narrow else ""
    how = (
        f"fused{', products in 8 bits' if model.fp8 else narrow}, elementwise in {where}"
        if model.fused
        else f"transformers' own, as {model.plain_because}"
    )
    return f"layers: {how}; attention: {kernel.name} ({because}); head and loss: chunks of {CHUNK} targets"
