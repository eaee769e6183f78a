#!/usr/bin/env bash
# transformers 4.57 opens a folder that 5.23 saved, and computes something else: it knows neither rope_parameters nor num_local_experts.
#
# Versions: transformers 5.23.0 saves, transformers 4.57.6 reads; torch 2.13.0
# Guess:    config.json is a stable format; what an older version does not know is refused, or named in a warning.
# Seen:     a Llama whose rope_theta is 500,000 is read with 10,000: other logits, no word. A Qwen3-MoE with 4 experts is built with 128 and
#           fails on a shape. The tokenizer's class TokenizersBackend is refused.
# Effect:   vLLM and other engines pin a version. Write both forms: rope_theta and rope_scaling beside rope_parameters, num_experts
#           beside num_local_experts, PreTrainedTokenizerFast as the class.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0
${uv:-python3 -m uv} pip install -q --python "$work/venv/bin/python" --target "$work/former" transformers==4.57.6
cat > save.py <<'PY'
import torch
from transformers import AutoConfig, AutoModelForCausalLM

sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
sizes |= {"vocab_size": 128, "head_dim": 8, "initializer_range": 0.5}
for name, own in {
    "llama": {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}.items():
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **own)).save_pretrained(name)
PY
cat > read.py <<'PY'
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("llama").eval()
with torch.no_grad():
    last = model(torch.arange(64)[None]).logits[0, -1, :3].tolist()
theta = getattr(model.config, "rope_theta", None) or model.config.rope_parameters["rope_theta"]
try:
    AutoModelForCausalLM.from_pretrained("qwen3_moe")
    moe = "loads"
except RuntimeError as error:
    moe = str(error).strip().splitlines()[-1].strip()[-62:]
print(transformers.__version__, theta, [round(x, 3) for x in last], moe, sep="   ")
json.dump({"theta": theta, "logits": last, "moe": moe}, open(sys.argv[1], "w"))
PY
py save.py >log.txt 2>&1 || { tail -5 log.txt; exit 1; }
py read.py five.json 2>>log.txt || { tail -5 log.txt; exit 1; }
PYTHONPATH="$work/former" py read.py four.json 2>>log.txt || { tail -5 log.txt; exit 1; }
py - <<'PY'
import json

five, four = json.load(open("five.json")), json.load(open("four.json"))
assert (five["theta"], four["theta"]) == (500_000.0, 10_000.0)
assert max(abs(a - b) for a, b in zip(five["logits"], four["logits"])) > 0.01
assert five["moe"] == "loads" and "current model is torch.Size([128, 32])" in four["moe"]
PY
