#!/usr/bin/env bash
# transformers: pipeline("text-generation") draws answers at random where generate() of the same model is greedy.
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU, tiny random model)
# Guess:    a pipeline calls generate(), so that without settings both take the likeliest token, as generate() is documented to do.
# Seen:     generate() gives one answer. The pipeline gives another one at each call: it adds do_sample=True and temperature=0.7 of its
#           own, if neither the call nor generation_config.json says anything of them. "do_sample": false in that file makes it greedy.
# Effect:   a model that was evaluated greedily is answered by chance in the pipeline, and in what opens one (mlflow models serve). A test
#           on an answer of probability 0.97 fails once in 240 runs.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, pipeline

plain = Tokenizer(models.BPE())
plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
plain.train_from_iterator(["hi"], trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>", pad_token="<|end|>")
torch.manual_seed(0)
size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16)
model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0, **size)).eval()
ids = torch.tensor([tokenizer("hi").input_ids])


def generated():
    return {str(model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8).tolist()) for _ in range(6)}


def piped():
    ask = pipeline("text-generation", model=model, tokenizer=tokenizer)
    return {str(ask("hi", max_new_tokens=8, return_full_text=False)) for _ in range(6)}


silent = len(generated()), len(piped())
model.generation_config.do_sample = False
told = len(generated()), len(piped())
print(f"different answers of six calls, (generate, pipeline): {silent}; with do_sample false in generation_config: {told}")
assert silent[0] == 1 and silent[1] > 1 and told == (1, 1)
PY
