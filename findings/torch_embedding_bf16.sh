#!/usr/bin/env bash
# torch: in bf16 on a CPU the gradient of a token's embedding stops growing after 256 occurrences.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    a sum in bf16 is added up in fp32 and rounded once, as torch's sum, matrix products and norms do.
# Seen:     the backward pass of nn.Embedding adds each occurrence into the bf16 gradient and rounds it every time. 1,000 equal gradients of 1
#           give 256. index_add_ does the same; sum, cumsum and scatter_add_ give 1,000.
# Effect:   with bf16 weights on a CPU the embeddings of the frequent tokens (line ends, the turn's markers) learn too little, the more the
#           longer the batch, and with tied weights the head too. Keep the embedding in fp32.
source "$(dirname "$0")/install.sh" torch==2.13.0
py - <<'PY'
import torch

ids, ones = torch.zeros(1000, dtype=torch.long), torch.ones(1000, dtype=torch.bfloat16)
seen = {}
for dtype in (torch.float32, torch.bfloat16):
    table = torch.nn.Embedding(4, 1, dtype=dtype)
    table(ids).sum().backward()
    seen[f"nn.Embedding, {dtype}"] = table.weight.grad[0, 0].item()
seen["index_add_, bf16"] = torch.zeros(1, dtype=torch.bfloat16).index_add_(0, ids, ones).item()
seen["scatter_add_, bf16"] = torch.zeros(1, dtype=torch.bfloat16).scatter_add_(0, ids, ones).item()
seen["cumsum, bf16"] = ones.cumsum(0)[-1].item()
seen["sum, bf16"] = ones.sum().item()
for how, value in seen.items():
    print(f"{how}: the sum of 1,000 ones is {value:g}")
assert list(seen.values()) == [1000, 256, 256, 1000, 1000, 1000], seen
PY
