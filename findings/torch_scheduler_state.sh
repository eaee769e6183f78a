#!/usr/bin/env bash
# torch.optim.lr_scheduler: a run that is resumed with more steps follows the old schedule to its end, and then the learning rate rises again.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    load_state_dict restores the position; the length of the schedule, which the new run was started with, is the new one. After its end a
#           cosine stays at its minimum.
# Seen:     the state holds the settings too: CosineAnnealingLR(T_max=20) becomes one of T_max=10 and LinearLR takes its old length, without a word,
#           while LambdaLR (transformers' and most own schedules) takes the new length, since functions are not saved. At its end the cosine
#           turns: at twice T_max the learning rate is the highest again. A new learning rate is replaced as well, by the optimizer's state and by
#           base_lrs.
# Effect:   "train for ten more epochs" trains a finished model at the highest rate. Set the attributes again after loading, or compute the rate from
#           the step, as Talaria does.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import math

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR


def started(make, steps, lr=1.0):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, make(optimizer, steps)


def rates(optimizer, schedule, steps):
    found = []
    for _ in range(steps):
        found.append(round(optimizer.param_groups[0]["lr"], 3))
        optimizer.step()
        schedule.step()
    return found


def resumed(make, lr=1.0):
    """The rates of steps 8 to 20 of a run of 10 steps that was stopped at 8 and resumed as one of 20, and those of 20 from the beginning."""
    first = started(make, 10)
    rates(*first, 8)
    again = started(make, 20, lr)
    for one, old in zip(again, first):
        one.load_state_dict(old.state_dict())
    seen, whole = rates(*again, 13), rates(*started(make, 20, lr), 21)[8:]
    return seen, whole


schedules = {
    "CosineAnnealingLR": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
    "LinearLR": lambda optimizer, steps: LinearLR(optimizer, start_factor=1.0, end_factor=0.1, total_iters=steps),
    "LambdaLR": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))),
}
for name, make in schedules.items():
    seen, whole = resumed(make)
    print(f"{name}: resumed {seen}\n    from the beginning {whole}")
    if name == "CosineAnnealingLR":
        assert seen[2] == 0.0 and seen[-1] == 1.0
    elif name == "LinearLR":
        assert set(seen[2:]) == {0.1} and whole[-1] == 0.1 and whole[2] == 0.55
    else:
        assert seen[1:] == whole[1:]
slower, _ = resumed(schedules["CosineAnnealingLR"], lr=0.1)
print("resumed with a learning rate of 0.1, at its highest:", max(slower))
assert max(slower) == 1.0
PY
