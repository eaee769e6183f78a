#!/usr/bin/env bash
# PEFT: combination_type="linear" is no linear combination: the mean of an adapter with itself is twice the adapter.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    add_weighted_adapter(["one", "two"], [0.5, 0.5], combination_type="linear") makes the mean of what the two adapters add to the weights.
# Seen:     it adds the factors: (A1 + A2) and (B1 + B2), each times the root of 0.5, and their product has the cross terms A1 B2 and A2 B1.
#           Of one adapter twice it is 2 times the adapter; of two that have nothing in common it is as far from their mean as zero is.
#           "cat" gives the mean, at the ranks' sum; "svd", the default, the nearest of the first's rank. Weights of one adapter alone are right.
# Effect:   merged checkpoints of one training, which are nearly equal, come out with nearly twice the change. Use "cat", or merge each
#           into the base model and take the mean of the weights.
source "$(dirname "$0")/install.sh" peft==0.21.2 transformers==5.23.0 torch==2.13.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
size = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
random = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
model = get_peft_model(Qwen3ForCausalLM(Qwen3Config(**size)), random, adapter_name="one")
model.add_adapter("two", random)


def change(adapter):
    """What an adapter adds to the weight."""
    model.set_adapter(adapter)
    return model.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight(adapter).detach()


def combined(adapters, weights, kind):
    name = "_".join((*adapters, kind))
    model.add_weighted_adapter(adapters, weights, name, combination_type=kind)
    return change(name)


one, two = change("one"), change("two")
mean = (one + two) / 2
for kind in ("linear", "cat"):
    same = (combined(["one", "one"], [0.5, 0.5], kind).norm() / one.norm()).item()
    off = ((combined(["one", "two"], [0.5, 0.5], kind) - mean).norm() / mean.norm()).item()
    print(f"{kind}: one adapter with itself {same:.4f} of it; two adapters, distance from the mean {off:.4f} of the mean")
    assert (abs(same - 2) < 1e-4 and off > 0.9) if kind == "linear" else (abs(same - 1) < 1e-4 and off < 1e-4)
assert torch.allclose(combined(["one"], [0.25], "linear"), one / 4, atol=1e-6)
PY
