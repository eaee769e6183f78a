#!/usr/bin/env bash
# transformers: a mixture of experts loaded in 4 or 8 bits keeps its experts, nearly all of its weights, in bf16.
#
# Versions: transformers 5.23.0, bitsandbytes 0.50.2, torchao 0.18.0, torch 2.13.0 (CPU)
# Guess:    load_in_4bit quantises the linear layers of a model, the experts' among them, as in transformers 4; what is left out is named.
# Seen:     since version 5 the experts of a layer are two tensors of three dimensions and no linear layers, which both bitsandbytes and
#           torchao look for. They stay in bf16, without a warning: in the example 98% of the bytes are what they were, of a dense
#           model 2%.
# Effect:   a model bought in "4 bits" does not fit where it should. Compare get_memory_footprint() before and after.
source "$(dirname "$0")/install.sh" transformers==5.23.0 bitsandbytes==0.50.2 torchao==0.18.0 torch==2.13.0 accelerate==1.15.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import warnings

import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, Qwen3Config, Qwen3MoeConfig, TorchAoConfig
from transformers.utils import logging

said = []
handler = type("Handler", (logging.logging.Handler,), {"emit": lambda self, record: said.append(record.getMessage())})()
for name in ("transformers", "bitsandbytes", "torchao"):
    logging.logging.getLogger(name).addHandler(handler)
size = dict(vocab_size=64, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=64)
experts = dict(num_experts=64, num_experts_per_tok=2, moe_intermediate_size=256)
models = {"dense": Qwen3Config(intermediate_size=2048, **size), "experts": Qwen3MoeConfig(**experts, **size)}
ways = {"bitsandbytes, 4 bits": BitsAndBytesConfig(load_in_4bit=True), "torchao, 8 bits": TorchAoConfig(Int8WeightOnlyConfig())}
for name, config in models.items():
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(name)
    whole = sum(p.nbytes for p in AutoModelForCausalLM.from_pretrained(name).parameters())
    for way, quantization in ways.items():
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            model = AutoModelForCausalLM.from_pretrained(name, quantization_config=quantization)
        kept = sum(p.nbytes for p in model.parameters() if p.dtype == torch.bfloat16 and type(p) is torch.nn.Parameter)
        print(f"{name}, {way}: {kept / whole:.0%} of the bytes are bf16 as before")
        assert (kept / whole > 0.95) == (name == "experts") and (kept / whole < 0.05) == (name == "dense")
        assert not [text for text in [*said, *(str(one.message) for one in warned)] if "expert" in text], said
experts = model.model.layers[0].mlp.experts
print({key: (tuple(p.shape), p.dtype) for key, p in experts.named_parameters()})
PY
