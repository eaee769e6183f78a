#!/usr/bin/env bash
# PEFT: names that match nothing are an error only if no target at all matches.
#
# Versions: peft 0.21.2, transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    a misspelt module name is an error or at least a warning, in each of the four settings that take names.
# Seen:     target_modules=["q_proj", "k_porj"] trains q_proj alone. modules_to_save=["lm_haed"] trains no head.
#           exclude_modules=["layers.0"] excludes nothing, because a list is compared with the end of each name. rank_pattern for a module
#           that is no target has no effect. Nothing is logged. The string "q_proj" instead of the list ["q_proj"] is an error, because a
#           string is a regular expression for the whole name.
# Effect:   count the trained modules after wrapping. Talaria refuses an entry of `train.lora.targets` that matches nothing.
source "$(dirname "$0")/install.sh" peft==0.21.2 transformers==5.23.0 torch==2.13.0
py - <<'PY'
import logging, warnings
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

heard = []
logging.getLogger("peft").addHandler(type("Handler", (logging.Handler,), {"emit": lambda self, record: heard.append(record)})())
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16)

def trained(**names):
    config = LoraConfig(r=4, **names)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = get_peft_model(Qwen3ForCausalLM(Qwen3Config(vocab_size=64, tie_word_embeddings=False, **size)), config)
    assert not heard and not [w for w in told if issubclass(w.category, UserWarning) and "module" in str(w.message)], (heard, told)
    return {name: p.shape for name, p in model.named_parameters() if p.requires_grad}

plain = trained(target_modules=["q_proj"])
print(len(plain), "trained tensors with q_proj alone")
assert len(plain) == 4
assert trained(target_modules=["q_proj", "k_porj"]) == plain
assert trained(target_modules=["q_proj"], modules_to_save=["lm_haed"]) == plain
assert trained(target_modules=["q_proj"], exclude_modules=["layers.0"]) == plain
assert trained(target_modules=["q_proj"], rank_pattern={"k_proj": 16}) == plain
assert len(trained(target_modules=["q_proj"], exclude_modules=r".*layers\.0\..*")) == 2
try:
    trained(target_modules="q_proj")
except ValueError as error:
    print("a string:", error)
else:
    raise SystemExit("a string is compared with the end of the name now")
PY
