"""Activation memory of a micro-batch, and how many layers recompute theirs in the backward pass where it does not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from talaria.train.kernels.decoder_layer import Saved
from talaria.train.model.loss import CHUNK

USABLE = 0.89
"""Share of a GPU's memory that is filled; the rest is for the CUDA context, libraries and fragments. Filled to the brim, the
allocator stops again and again to move memory about."""

_FEWEST = 3584
"""Tokens that keep a GPU busy: a micro-batch of Qwen3-4B's shape takes an H100 0.12 s however short it is, and with fewer tokens
than these it is faster to compute some layers twice (benchmarks/LOG.md)."""


@dataclass(frozen=True)
class ActivationMemory:
    """Bytes of a model's activations."""

    layers: int
    saved_min: int
    saved_default: int
    saved_all: int
    """Bytes of a token in a layer under `Saved.INPUT`, `Saved.DEFAULT` and `Saved.ALL`."""
    logits: int
    """Bytes of a target's logits, for as long as its chunk of the loss is computed."""

    @classmethod
    def of(cls, config: Any, *, fused: bool, itemsize: int) -> ActivationMemory:
        """Count them from a Hugging Face model's configuration; itemsize: bytes of a number in its products."""
        heads, kv_heads = (count * head_width(config) for count in (config.num_attention_heads, config.num_key_value_heads))
        hidden, inner = config.hidden_size, inner_width(config)
        default = 2 * (hidden + heads + kv_heads + inner)
        full = default + heads + kv_heads + inner
        if not fused:
            default = full = 2 * full  # what autograd keeps of transformers' own layers
        sizes = (itemsize * size for size in (hidden, default, full, config.vocab_size))
        return cls(config.num_hidden_layers, *sizes)

    def saved_per_layer(self, budget_bytes: int, tokens: int, targets: int) -> list[Saved]:
        """Choose what each layer saves of a micro-batch so that all fits into `budget_bytes`.

        As few layers as possible recompute everything; what is then left of the budget lets others save all.
        """
        minimum, default, full = (max(tokens, 1) * size for size in (self.saved_min, self.saved_default, self.saved_all))
        budget_bytes -= min(targets, CHUNK) * self.logits + 2 * full  # in passing
        n_recompute = min(self.layers, max(0, -((budget_bytes - self.layers * default) // (default - minimum))))
        spare = budget_bytes - n_recompute * minimum - (self.layers - n_recompute) * default
        n_all = min(self.layers - n_recompute, max(0, spare // (full - default))) if full > default else 0
        n_default = self.layers - n_recompute - n_all
        return [Saved.INPUT] * n_recompute + [Saved.DEFAULT] * n_default + [Saved.ALL] * n_all

    def packed_tokens(self, limit: int, budget_bytes: float) -> int:
        """Up to `limit`, the most tokens for which no layer has to be recomputed, but enough to keep the GPU busy."""
        return min(limit, max(self.tokens_without_recomputation(budget_bytes), _FEWEST))

    def tokens_without_recomputation(self, budget_bytes: float) -> int:
        return int((budget_bytes - CHUNK * self.logits) / self._of_token)

    def bytes_without_recomputation(self, tokens: int) -> int:
        return CHUNK * self.logits + tokens * self._of_token

    @property
    def _of_token(self) -> int:
        return self.layers * self.saved_default + 2 * self.saved_all


def inner_width(config: Any) -> int:
    """Width of what a token's MLP computes: of all experts that it goes to, where there are experts."""
    experts = getattr(config, "num_experts_per_tok", None)
    width: int = experts * config.moe_intermediate_size if experts else config.intermediate_size
    return width


def head_width(config: Any) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width
