"""What a micro-batch leaves behind for its backward pass: how many bytes, and what is computed again where there is no room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from talaria.train.kernels.decoder_layer import Keep
from talaria.train.model.loss import CHUNK

USABLE = 0.89
"""Share of a GPU's memory that is filled; the rest is for the CUDA context, libraries and fragments. Filled to the brim, the
allocator stops again and again to move memory about."""

_FEWEST = 3584
"""Tokens that keep a GPU busy: a micro-batch of Qwen3-4B's shape takes an H100 0.12 s however short it is, and with fewer tokens
than these it is faster to compute some layers twice (benchmarks/LOG.md)."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's activations."""

    layers: int
    least: int
    most: int
    everything: int
    """`least` to `everything`: of a token in a layer, for each `Keep`."""
    logits: int
    """Of a target, for as long as its chunk of the loss is computed."""

    @classmethod
    def of(cls, config: Any, *, fused: bool, itemsize: int) -> Footprint:
        """config: a Hugging Face model's; itemsize: bytes of a number in its products."""
        heads, kv_heads = (count * head_width(config) for count in (config.num_attention_heads, config.num_key_value_heads))
        least, inner = config.hidden_size, config.intermediate_size
        most = 2 * (least + heads + kv_heads + inner)
        everything = most + heads + kv_heads + inner
        if not fused:
            most = everything = 2 * everything  # what autograd keeps of transformers' own layers
        sizes = (itemsize * size for size in (least, most, everything, config.vocab_size))
        return cls(config.num_hidden_layers, *sizes)

    def keeps(self, room: int, tokens: int, targets: int) -> list[Keep]:
        """What each layer keeps of a micro-batch in `room` bytes: less for as few layers as must, then more for who can."""
        least, most, everything = (tokens * size for size in (self.least, self.most, self.everything))
        room -= min(targets, CHUNK) * self.logits + 2 * everything  # in passing
        again = min(self.layers, max(0, -((room - self.layers * most) // (most - least))))
        spare = room - again * least - (self.layers - again) * most
        rich = min(self.layers - again, max(0, spare // (everything - most))) if everything > most else 0
        return [Keep.INPUT] * again + [Keep.MOST] * (self.layers - again - rich) + [Keep.ALL] * rich

    def packed_tokens(self, limit: int, room: float) -> int:
        """Up to `limit`, the most tokens of which no layer has to be computed again, but enough to keep the GPU busy."""
        tokens = int((room - CHUNK * self.logits) / (self.layers * self.most + 2 * self.everything))
        return min(limit, max(tokens, _FEWEST))


def head_width(config: Any) -> int:
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return width
