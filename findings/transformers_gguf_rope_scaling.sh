#!/usr/bin/env bash
# transformers: a GGUF file's scaled rotary embedding is dropped when the file is opened as a model, without a word.
#
# Versions: transformers 5.23.0, gguf 0.19.0, accelerate 1.15.0, torch 2.13.0 (CPU)
# Guess:    AutoModelForCausalLM.from_pretrained(..., gguf_file=...) gives the model that was written: all weights are equal, so all logits are.
# Seen:     Llama 3.1 and later keep their scaling in a GGUF as the tensor rope_freqs.weight, YaRN as the keys rope.scaling.*; neither is
#           read. The configuration says rope_type "default", a tensor that nothing takes is not reported, and the logits of the first 60
#           tokens already differ by more than 1 (in an unscaled model: by 0).
# Effect:   a base model that was made from such a GGUF with save_pretrained trains and exports with the wrong positions. Copy rope_scaling
#           (rope_parameters) from the config.json of the original model, and compare the logits of a few tokens.
source "$(dirname "$0")/install.sh" transformers==5.23.0 gguf==0.19.0 torch==2.13.0 accelerate==1.15.0
py - <<'PY'
import math
import os

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

SIZE = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=4096, tie_word_embeddings=False, head_dim=128)
IDS = torch.arange(60)[None]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024}

def halves_to_pairs(weight, heads):
    """llama.cpp turns neighbours, transformers the two halves of a head."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

def llama3_divisors(w):
    """What each frequency is divided by, as llama.cpp's converter writes it."""
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    divisors = []
    for pair in range(64):
        turns = LLAMA3["original_max_position_embeddings"] / (2 * math.pi * LLAMA3["rope_theta"] ** (pair / 64))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / LLAMA3["factor"] + smooth))
    w.add_tensor("rope_freqs.weight", np.array(divisors, dtype=np.float32))

def yarn_keys(w):
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(YARN["factor"])
    w.add_rope_scaling_orig_ctx_len(YARN["original_max_position_embeddings"])

def written_and_read(name, config, arch, scaling):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    os.makedirs(name)
    w = gguf.GGUFWriter(f"{name}/model.gguf", gguf.MODEL_ARCH_NAMES[arch])
    w.add_block_count(config.num_hidden_layers)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(config.rope_parameters["rope_theta"])
    w.add_rope_dimension_count(config.head_dim)
    w.add_key_length(config.head_dim)
    w.add_value_length(config.head_dim)
    w.add_vocab_size(config.vocab_size)
    scaling(w)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        array = weight.numpy()
        if arch == gguf.MODEL_ARCH.LLAMA and ("q_proj" in key or "k_proj" in key):
            array = halves_to_pairs(array, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        w.add_tensor(names.get_name(key.removesuffix(".weight")) + ".weight", np.ascontiguousarray(array))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    read = AutoModelForCausalLM.from_pretrained(name, gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        apart = (model(IDS).logits - read(IDS).logits).abs().max().item()
    print(f"{name}: logits differ by {apart:.2f}; read as {read.config.rope_parameters}")
    return apart, read.config.rope_parameters["rope_type"]

llama, qwen3 = gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.QWEN3
assert written_and_read("plain", LlamaConfig(**SIZE), llama, lambda w: None) == (0.0, "default")
for name, config, arch, scaling in (
    ("llama3", LlamaConfig(**SIZE, rope_parameters=LLAMA3), llama, llama3_divisors),
    ("yarn", Qwen3Config(**SIZE, rope_parameters=YARN), qwen3, yarn_keys),
):
    apart, kind = written_and_read(name, config, arch, scaling)
    assert apart > 0.5 and kind == "default"
PY
