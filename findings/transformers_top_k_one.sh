#!/usr/bin/env bash
# transformers: with top_k=1 an answer is still random, and other than the greedy one.
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    do_sample=True with top_k=1 is greedy decoding.
# Seen:     all tokens that share the highest logit stay, and one of them is drawn. In bf16 logits between 16 and 32 are multiples of 0.125,
#           so the two highest of a large vocabulary are often equal: in SmolLM2-135M at 60 of 1,024 positions of a text, and at 2 of
#           200 of its own answer. do_sample=False takes the first of them always.
# Effect:   evaluations with "temperature 1, top_k 1" are not repeatable without a seed. Set do_sample=False, or temperature 0 where a server
#           has it. Talaria's servers take the likeliest token at temperature 0.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0
py - <<'PY'
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=151_936, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
    eos_token_id=None, pad_token_id=0, initializer_range=0.5,
)
whole = Qwen3ForCausalLM(config).eval()
prompt = torch.arange(1, 9)[None]


def answers(model, count=4, **how):
    found = set()
    for seed in range(count):
        torch.manual_seed(seed)
        found.add(tuple(model.generate(prompt, max_new_tokens=60, **how)[0, 8:].tolist()))
    return found


for dtype in (torch.float32, torch.bfloat16):
    model = whole.to(dtype)
    greedy, one = answers(model, do_sample=False), answers(model, do_sample=True, top_k=1)
    print(f"{dtype}: greedy {len(greedy)} answer in 4 runs; top_k=1 {len(one)}, equal to the greedy one: {len(one & greedy) == len(one)}")
    with torch.no_grad():
        top = model(torch.tensor([next(iter(greedy))])).logits[0].float().topk(2).values
    ties = int((top[:, 0] == top[:, 1]).sum())
    print(f"    {ties} of {len(top)} positions have two equal highest logits")
    assert len(greedy) == 1 and (len(one) > 1) == (dtype == torch.bfloat16), (len(greedy), len(one))
PY
