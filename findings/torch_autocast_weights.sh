#!/usr/bin/env bash
# torch.autocast: a training loop inside one autocast block computes each step with the weights of the first.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    autocast casts a weight when it is used, so the block may be around the whole loop, and weights that change are seen.
# Seen:     the bf16 copy of each weight that needs a gradient is kept until the outermost block ends. The optimizer changes the weights, and
#           the loss stays as it was, to the last digit; after load_state_dict inside the block the model still gives the old answers. Nothing is
#           said. One block a step, or cache_enabled=False, is right; without a gradient nothing is kept.
# Effect:   a run with "no progress", or one that goes in the direction of its first gradient until it diverges; an evaluation of several
#           checkpoints in one block scores the first. One block for each forward pass. Talaria casts without autocast.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import contextlib

import torch

torch.manual_seed(0)
INPUTS, TARGETS = torch.randn(8, 4), torch.ones(8, 1)


def autocast(**how):
    return torch.autocast("cpu", dtype=torch.bfloat16, **how)


def losses(around_loop, around_step):
    torch.manual_seed(1)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = []
    with around_loop:
        for _ in range(5):
            with around_step():
                loss = (model(INPUTS).float() - TARGETS).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(round(loss.item(), 4))
    return found


inside, each = losses(autocast(), contextlib.nullcontext), losses(contextlib.nullcontext(), autocast)
uncached = losses(autocast(cache_enabled=False), contextlib.nullcontext)
print("the loop in one block:", inside)
print("a block for each step:", each, "- one block without the cache:", uncached)
assert len(set(inside)) == 1
assert each == sorted(each, reverse=True) and len(set(each)) == 5 and uncached == each

model = torch.nn.Linear(2, 1)
with autocast():
    before = model(torch.ones(1, 2)).item()
    model.load_state_dict({"weight": torch.full((1, 2), 8.0), "bias": torch.zeros(1)})
    after = model(torch.ones(1, 2)).item()
print("after load_state_dict in the block:", after, "before:", before)
assert after == before != 16
with torch.no_grad(), autocast():
    assert model(torch.ones(1, 2)).item() == 16
PY
