"""Tiny models of each supported family, and conversations of random tokens for them."""

from pathlib import Path

import numpy as np
import torch
from talaria.train.batching.packing import pack

VOCAB = 211


def save_tiny(folder: Path, family: str = "qwen3", **changes) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB, "tie_word_embeddings": True, "initializer_range": 0.2}
    config = AutoConfig.for_model(family, **(sizes | changes))
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def conversations(lengths, seed=0):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, VOCAB, n, dtype=np.int32) for n in lengths]


def batch_of(texts, share=0.6, seed=1, **how):
    lengths = [len(text) for text in texts]
    supervised = np.random.default_rng(seed).random(sum(lengths)) < share
    return pack(np.concatenate(texts), supervised, lengths, np.arange(len(texts)), **how)
