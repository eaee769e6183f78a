#!/usr/bin/env bash
# transformers: the padding token's embedding is not trained, though the token is part of the text and nothing is padded.
#
# Versions: transformers 5.23.0, torch 2.13.0 (CPU)
# Guess:    config.pad_token_id says what fills a batch up. A token that is supervised and read is trained, whatever else it is used for.
# Seen:     it becomes nn.Embedding(padding_idx=...), which gives that row no gradient, in batches without any padding too. Many chat models
#           pad with the token that ends a turn (SmolLM2-Instruct: <|im_end|>): its embedding stays as it was; where head and embedding
#           are tied, it gets the head's gradient alone.
# Effect:   set model.get_input_embeddings().padding_idx = None before training, as Talaria does.
source "$(dirname "$0")/install.sh" transformers==5.23.0 torch==2.13.0
py - <<'PY'
import torch
from transformers import LlamaConfig, LlamaForCausalLM

END = 3  # ends a turn, and is the padding token
size = dict(vocab_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=False)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(pad_token_id=END, **size))
ids = torch.tensor([[5, 6, END, 7, 8, END]])

def gradient():
    model.zero_grad()
    model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
    return {name: float(model.get_input_embeddings().weight.grad[row].norm()) for name, row in (("token 5", 5), ("the end of a turn", END))}

seen = gradient()
print("gradients of the embedding:", seen)
assert seen["token 5"] > 0 and seen["the end of a turn"] == 0
model.get_input_embeddings().padding_idx = None
seen = gradient()
print("without padding_idx:       ", seen)
assert seen["the end of a turn"] > 0
PY
