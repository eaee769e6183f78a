"""What the training benchmark trains: a model of random weights and conversations of random tokens, with real shapes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from talaria.tokenization.arrow_writer import ShardWriter, shard_name, write_index
from talaria.tokenization.encoder import TokenBatch, sums

ROPE = {"rope_type": "default", "rope_theta": 1e6}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-4b": {
        "family": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "rope_parameters": ROPE,
    },
    "qwen2.5-3b": {
        "family": "qwen2",
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "rope_parameters": ROPE,
    },
    "llama-3.2-3b": {
        "family": "llama",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "rope_parameters": ROPE,
    },
    "mistral-3b": {
        # Mistral's layers at the size above; of conversations of 400 tokens a quarter is longer than the window.
        "family": "mistral",
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
        "sliding_window": 512,
        "rope_parameters": ROPE,
    },
    "qwen3-8b": {
        "family": "qwen3",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": False,
        "rope_parameters": ROPE,
    },
    "small": {
        "family": "qwen3",
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 151936,
    },
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}
"""Sizes in which every shape goes through a benchmark's motions on a CPU."""
SHAPES["tiny"] = SHAPES["qwen3-4b"] | TINY
MEDIAN, SIGMA, LONGEST = 330, 0.68, 8000
"""Lognormal lengths with the statistics of OpenHermes-2.5 under Qwen3's tokenizer: mean ~415, p90 ~790, p99 ~1,600."""
SUPERVISED = 0.6
"""Mean share of a conversation that is its answer, at its end."""


def lengths_like_openhermes(count: int, longest: int, seed: int = 0) -> np.ndarray:
    """int64[count]; a longer conversation than `longest` is drawn again, as tokenize.on_long drops it."""
    draw = np.random.default_rng(seed)
    lengths = np.empty(0, np.int64)
    while len(lengths) < count:
        more = np.exp(draw.normal(math.log(MEDIAN), SIGMA, count)).astype(np.int64)
        lengths = np.concatenate([lengths, more[(more >= 8) & (more <= min(longest, LONGEST))]])
    return lengths[:count]


def make_tokens(folder: Path, count: int, vocabulary: int, longest: int, *, length: int = 0, seed: int = 0) -> np.ndarray:
    """A tokens folder as the tokenize stage writes it; returns the lengths: all `length`, or drawn up to `longest`."""
    lengths = np.full(count, length) if length else lengths_like_openhermes(count, longest, seed)
    draw = np.random.default_rng(seed + 1)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    start = np.repeat((lengths * (1 - draw.beta(6, 4, count))).astype(np.int64) + 1, lengths)  # beta(6, 4) has mean 0.6
    ids = draw.integers(0, vocabulary, offsets[-1], dtype=np.int32)
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, "train", 0)
    mask = place >= start
    writer.write(TokenBatch(ids, mask, offsets, np.arange(count), sums(mask, offsets)))
    shard = writer.close()
    assert shard is not None
    writer.path.rename(folder / shard_name(0, 1))
    write_index(folder, [shard])
    return lengths


def make_model(folder: Path, sizes: dict[str, Any], device: str, seed: int = 0) -> None:
    """A Hugging Face folder of bf16 weights drawn on the device; sizes: of `SHAPES`. Embeddings are tied unless they say no."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = dict(sizes)
    config = AutoConfig.for_model(sizes.pop("family"), **{"tie_word_embeddings": True, **sizes}, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    draw = torch.Generator(device).manual_seed(seed)
    weights = {}
    for name, param in model.named_parameters():
        if param.ndim == 1:
            weights[name] = torch.full(param.shape, float(not name.endswith("bias")), dtype=torch.bfloat16)
        else:
            drawn = torch.randn(param.shape, generator=draw, device=device)
            weights[name] = (drawn * config.initializer_range).bfloat16().cpu()
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
