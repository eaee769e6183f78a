"""A Hugging Face causal language model as the trainer runs it: packed conversations in, the sum of their losses out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from talaria.common.errors import ConfigError
from talaria.train.batching.packing import MicroBatch
from talaria.train.kernels import attention
from talaria.train.kernels import decoder_layer as kernels_layer
from talaria.train.kernels import elementwise as kernels
from talaria.train.kernels.decoder_layer import Saved, Stream, TokenLayout
from talaria.train.kernels.matmul import total_of
from talaria.train.kernels.torch_internals import embedding_gradient
from talaria.train.model.activation_memory import USABLE, ActivationMemory, head_width
from talaria.train.model.loss import CHUNK, linear_cross_entropy

FAMILIES = ("qwen3", "qwen2", "llama", "mistral")


@dataclass(frozen=True)
class LoraOptions:
    rank: int
    alpha: float
    dropout: float
    targets: str


@dataclass(frozen=True)
class ModelOptions:
    """How a model runs; the fields mean what the settings `train.*` of the same names do."""

    precision: Literal["mixed", "fp32", "bf16"]
    activation_checkpointing: Literal["auto", "off", "selective", "full"] = "auto"
    kernels: Literal["auto", "plain"] = "auto"
    deterministic: bool = False
    fp8: bool = False
    lora: LoraOptions | None = None


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
        self.fp8 = options.fp8
        self.transient_bytes = 0
        """Bytes that a step allocates beside what it begins with and its activations."""
        self._budget_bytes: int | None = None
        itemsize = 4 if options.precision == "fp32" else 2
        self.activations = ActivationMemory.of(self.core.config, fused=self.fused, itemsize=itemsize)
        if self.fused:
            for layer in layers(self):
                kernels_layer.fuse(layer, self.core.config, fp8=options.fp8)

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
        """Sum of weighted NLL, times `scale`. To be differentiated as it is where gradients go straight into totals."""
        core = self.core
        x, add = self.stream(batch, batch.positions)
        hidden = x if add is None else x + add
        return linear_cross_entropy(core.model.norm(hidden), core.lm_head.weight, batch.targets, batch.weights, scale=scale)

    def logits(self, batch: MicroBatch) -> Tensor:
        """Return [T, V], the logits of every packed token. Reference for tests: training never makes them."""
        x, add = self.stream(batch)
        out: Tensor = self.core.lm_head(self.core.model.norm(x if add is None else x + add))
        return out

    def stream(self, batch: MicroBatch, wanted: Tensor | None = None) -> Stream:
        """[T, H] twice, their sum the last layer's output before the final norm; the second may be None.

        With `wanted`, ascending int64[S]: [S, H], at these tokens only.
        """
        body = self.core.model
        saved = self.saved_per_layer(len(batch.input_ids), len(batch.positions))
        if not self.fused:
            x = self._plain_stream(batch, saved)
            return x if wanted is None else x.index_select(0, wanted), None
        x = _Embedding.apply(batch.input_ids, body.embed_tokens.weight)  # type: ignore[no-untyped-call]
        # In fp32, whatever the stream's dtype; its two halves are equal.
        cos, sin = body.rotary_emb(torch.empty(0, device=x.device), batch.position_ids.unsqueeze(0))
        half = cos.shape[-1] // 2
        rotary = kernels_layer.Rotary(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
        kernel, _ = attention.choose(x.device.type, x.dtype, 2 * half, self.deterministic)
        features = self.core.config.num_attention_heads * 2 * half
        tokens = TokenLayout(attention.pack(batch.cu_seqlens, batch.max_seqlen, kernel, features), rotary)
        stream: Stream = (x, None)
        *earlier, (last, last_saved) = zip(body.layers, saved, strict=True)
        for layer, layer_saved in earlier:
            stream = layer(stream, tokens, layer_saved)
        stream = last(stream, replace(tokens, wanted=wanted), last_saved)
        return stream

    def _plain_stream(self, batch: MicroBatch, saved_per_layer: Sequence[Saved]) -> Tensor:
        body = self.core.model
        x = body.embed_tokens(batch.input_ids.unsqueeze(0))
        kwargs = {
            "attention_mask": None,
            "position_ids": batch.position_ids.unsqueeze(0),
            "position_embeddings": body.rotary_emb(x, batch.position_ids.unsqueeze(0)),
            "use_cache": False,
            "cu_seq_lens_q": batch.cu_seqlens,
            "max_length_q": batch.max_seqlen,
            "deterministic": self.deterministic,
        }
        for layer, saved in zip(body.layers, saved_per_layer, strict=True):
            x = checkpoint(layer, x, use_reentrant=False, **kwargs) if saved == Saved.INPUT else layer(x, **kwargs)
        out: Tensor = x.squeeze(0)
        return out

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
            self._budget_bytes = int(USABLE * total) - torch.cuda.memory_allocated(weight.device) - self.transient_bytes
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
            total.index_put_((ids,), grad.float(), accumulate=True)  # sorts, so that the order of sums is always the same
            return None, None
        dense = embedding_gradient(grad, ids, len(table))
        if total is None:
            return None, dense
        total.add_(dense)
        return None, None


def load_model(folder: str | Path, options: ModelOptions, device: torch.device | str) -> CausalLM:
    """Load a Hugging Face folder for training. Raises ConfigError for a family that has not been checked."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_supported(config, str(folder))
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    hf = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention.register(), trust_remote_code=False
    )
    hf.config.use_cache = False
    if options.lora:
        hf = add_adapters(hf, options.lora)
    model = CausalLM(hf, options)
    if options.fp8 and (not model.fused or config.hidden_size % 16 or config.intermediate_size % 16):
        why = model.plain_because or "its widths are no multiples of 16"
        raise ConfigError(f"train.fp8 does not work for {folder}, as {why}; leave it off.")
    return model.to(device)


def add_adapters(hf: Any, lora: LoraOptions) -> nn.Module:
    """Wrap the model's linear layers in LoRA adapters (peft); only these train."""
    import peft

    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=lora.targets
    )
    wrapped: nn.Module = peft.get_peft_model(hf, settings)
    return wrapped


def check_supported(config: Any, folder: str) -> None:
    if config.model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ConfigError(f"{folder}: model_type {config.model_type!r} is not one of {known}; choose another base model.")
    if getattr(config, "attention_dropout", 0.0):
        raise ConfigError(f"{folder}: attention dropout is not supported; set attention_dropout to 0 in config.json.")


def layers(model: CausalLM) -> list[nn.Module]:
    """The decoder layers, in order: the units of sharding."""
    return list(model.core.model.layers)


def lay_out(model: CausalLM) -> None:
    """Order a whole (not sharded) model's weights in memory as its products want them, once their dtype is final."""
    if model.fused:
        for layer in layers(model):
            kernels_layer.lay_out(layer)


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
    how = (
        f"fused{', products in 8 bits' if model.fp8 else ''}, elementwise in {where}"
        if model.fused
        else f"transformers' own, as {model.plain_because}"
    )
    return f"layers: {how}; attention: {kernel.name} ({because}); head and loss: chunks of {CHUNK} targets"
