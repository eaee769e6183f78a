#!/usr/bin/env bash
# transformers serve: temperature and top_p do nothing for a model whose generation_config does not say do_sample.
#
# Versions: transformers 5.23.0, torch 2.13.0, fastapi 0.136.3, uvicorn 0.54.0 (CPU, tiny random model)
# Guess:    a request with temperature 1.5 is sampled, as with the API that the server imitates.
# Seen:     temperature 1.5, and temperature 2.0 with top_p 0.9, give the greedy answer every time, with status 200 and without a warning.
#           With "do_sample": true in the request's extra field generation_config (or in the model's file) the answers differ.
# Effect:   pass@k, self-consistency and preference data are k copies of one answer. Send generation_config, or publish the model with
#           do_sample in generation_config.json; temperature 0 still makes it greedy.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0 fastapi==0.136.3 uvicorn==0.54.0 openai==3.57.0 accelerate==1.15.0 rich requests
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

plain = Tokenizer(models.BPE())
plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
plain.train_from_iterator(["hi"], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>", pad_token="<|end|>")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
tokenizer.save_pretrained("model")
torch.manual_seed(0)
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0, **size)).save_pretrained("model")
PY
port=$(py -c "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); print(s.getsockname()[1])")
venv/bin/transformers serve model --device cpu --host 127.0.0.1 --port "$port" >server.txt 2>&1 &
trap 'kill %1; rm -rf "$work"' EXIT
py - "$port" <<'PY' || { tail -5 server.txt; exit 1; }
import json, sys, time, urllib.error, urllib.request

address = f"http://127.0.0.1:{sys.argv[1]}"

def ask(**options):
    body = {"model": "model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, **options}
    request = urllib.request.Request(address + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["message"]["content"]

for _ in range(300):
    try:
        urllib.request.urlopen(address + "/health", timeout=5)
        break
    except (urllib.error.URLError, ConnectionError):
        time.sleep(0.5)
greedy = {ask(temperature=0)}
warm = {ask(temperature=1.5) for _ in range(4)} | {ask(temperature=2.0, top_p=0.9) for _ in range(4)}
sampled = {ask(temperature=1.5, generation_config=json.dumps({"do_sample": True})) for _ in range(6)}
print(f"greedy {greedy}, temperature 1.5 and 2.0 {warm}, with do_sample {sampled}")
assert warm == greedy and len(sampled) > 1
PY
