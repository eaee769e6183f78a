#!/usr/bin/env bash
# transformers: a loaded model changes when its safetensors file is overwritten in place.
#
# Versions: transformers 5.23.0, safetensors 0.8.0, torch 2.13.0 (CPU)
# Guess:    from_pretrained copies the weights; a file that changes afterwards does not matter.
# Seen:     on the CPU the parameters are the file's memory map. Writing another model over the file changes the running model at once,
#           without an error. A rename over the file (a new inode) leaves it alone.
# Effect:   never export over a folder that somebody serves. Write a new folder and rename, as Talaria's exports do.
source "$(dirname "$0")/install.sh" transformers==5.23.0 safetensors==0.8.0 torch==2.13.0
py - <<'PY'
import os, pathlib, shutil, torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
Qwen3ForCausalLM(Qwen3Config(vocab_size=64, **size)).save_pretrained("model")
file = pathlib.Path("model/model.safetensors")
save_file({name: torch.full_like(value, 7) for name, value in load_file(file).items()}, "sevens", metadata={"format": "pt"})

def is_changed(model):
    return bool((model.model.layers[0].self_attn.q_proj.weight == 7).all())

shutil.copy("sevens", "renamed")
shutil.copy(file, "before")
model = Qwen3ForCausalLM.from_pretrained("model")
os.replace("renamed", file)
print("after a rename:", is_changed(model))
assert not is_changed(model)

os.replace("before", file)
model = Qwen3ForCausalLM.from_pretrained("model")
with file.open("r+b") as opened:
    opened.write(pathlib.Path("sevens").read_bytes())
print("after writing in place:", is_changed(model))
assert is_changed(model)
PY
