#!/usr/bin/env bash
# transformers: a model saved in shards over an older one is not the model that is loaded.
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    what save_pretrained wrote last is what from_pretrained reads.
# Seen:     save_pretrained removes shards of an earlier save, but not an earlier model.safetensors, and from_pretrained prefers that one
#           file to model.safetensors.index.json: the folder has the new shards, the new index and the new config, and the old weights are
#           loaded, without a word. The other way round, from shards to one file, the new weights are read.
# Effect:   a model saved again with a smaller max_shard_size, or one that has grown past it, is evaluated and served with its old weights.
#           Save to an empty folder, as Talaria does.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0
py - <<'PY'
import os

import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

logging.disable_progress_bar()
config = Qwen3Config(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32
)


def loaded(first, second):
    """Which of two saves of one folder is read; each is 'whole' or 'shards'."""
    folder = f"{first}-{second}"
    models = [Qwen3ForCausalLM(config) for _ in range(2)]
    for model, form in zip(models, (first, second), strict=True):
        model.save_pretrained(folder, max_shard_size="1GB" if form == "whole" else "100KB")
    read = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    found = [all(torch.equal(read[name], weight) for name, weight in model.state_dict().items()) for model in models]
    weights = sorted(name for name in os.listdir(folder) if name.startswith("model"))
    return ["the first" if found[0] else "", "the second" if found[1] else ""], weights


for forms in (("whole", "shards"), ("shards", "whole"), ("whole", "whole"), ("shards", "shards")):
    who, weights = loaded(*forms)
    print(f"{forms[0]}, then {forms[1]}: {''.join(who)} is read; {weights[0]} ... {weights[-1]}, {len(weights)} files")
    assert who == (["the first", ""] if forms == ("whole", "shards") else ["", "the second"]), who
PY
