#!/usr/bin/env bash
# transformers: packed conversations attend to each other unless use_cache is False and no attention mask is given.
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU; Qwen3 with random weights, sdpa)
# Guess:    position ids that restart at 0 keep packed sequences apart, always, at least in training mode.
# Seen:     they do so only for model(input_ids, position_ids, use_cache=False). With the default use_cache the second sequence's
#           logits change when the first sequence changes, in eval and in train mode. With an attention mask of ones they change too,
#           whatever use_cache is. Nothing is logged in any of these cases.
# Effect:   a custom loop, or an evaluation with packed rows, silently trains or measures something else. Compare packed logits with those
#           of each sequence alone; Talaria's tests do, for each attention kernel.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0
py - <<'PY'
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.manual_seed(0)
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=64, **size))
first, other, second = (torch.randint(0, 64, (1, n)) for n in (5, 5, 7))
positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
ones = torch.ones(1, 12, dtype=torch.long)

@torch.no_grad()
def leak(**options):
    """How much the second sequence's logits change with the first sequence."""
    logits = [model(torch.cat([start, second], 1), position_ids=positions, **options).logits[0, 5:] for start in (first, other)]
    return float((logits[0] - logits[1]).abs().max())

for mode in (model.eval, model.train):
    mode()
    found = {
        "use_cache=False": leak(use_cache=False),
        "default": leak(),
        "mask of ones, use_cache=False": leak(attention_mask=ones, use_cache=False),
    }
    print(mode.__name__, found)
    assert found["use_cache=False"] == 0
    assert found["default"] > 0.01 and found["mask of ones, use_cache=False"] > 0.01
PY
