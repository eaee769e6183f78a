#!/usr/bin/env bash
# torch.distributed.checkpoint: looking at the state of a new optimiser makes its first step a quarter smaller.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    get_optimizer_state_dict and get_state_dict only read.
# Seen:     of an optimiser that has no state yet they make one, by a step with learning rate 0, and leave it there: AdamW then counts one
#           step. The first real step has the bias correction of a second one, and moves weights by 0.74 of what it would have.
# Effect:   a run that saves before its first step (or prepares a state to load into, and then finds no checkpoint) is not the run that
#           does not. Save after a step, or set each state's `step` back to 0.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
py - <<'PY'
import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, get_state_dict


def first_move(look):
    """The mean distance that weights move in the first step, and the steps that AdamW counts after it."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    look(model, optimizer)
    before = model.weight.detach().clone()
    model(torch.randn(4, 8)).square().mean().backward()
    optimizer.step()
    return (model.weight - before).abs().mean().item(), optimizer.state[model.weight]["step"].item()


plain = first_move(lambda model, optimizer: optimizer.state_dict())
print("optimizer.state_dict() before the first step:", plain)
assert plain[1] == 1
for look in (get_optimizer_state_dict, get_state_dict):
    looked = first_move(look)
    print(f"{look.__name__} before the first step:", looked)
    assert looked[1] == 2
    assert abs(looked[0] / plain[0] - 0.744) < 0.01, looked
PY
