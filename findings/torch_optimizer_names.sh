#!/usr/bin/env bash
# torch.optim: an optimizer that knows its parameters' names loads its state by their order, and gives a weight the moments of another.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    AdamW(model.named_parameters()) keeps the names in its state, and load_state_dict finds each parameter by its name, or says that one is
#           missing.
# Seen:     names are saved and not looked at. With the groups (decay and no decay, base and adapter) in another order, or the same parameters
#           sorted, each gets the state of the one that had its place: of another shape too, as long as no step is made. Only the number of groups
#           and of parameters is checked. Afterwards the groups have the old names, so the next state is wrongly named as well.
# Effect:   a run resumed by a newer version of the code goes on with moments of other layers, which for layers of one shape nothing will ever
#           tell. Reorder the state by param_names before loading, as Talaria's checkpoints do by key.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch


def made(order):
    """The optimizer of two projections of one shape, and the names by parameter."""
    named = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in ("query", "key")}
    return named, torch.optim.AdamW([(name, named[name]) for name in order])


old_named, old = made(["query", "key"])
for size, weight in enumerate(old_named.values(), 1):
    weight.grad = torch.full((2, 2), float(size))
old.step()
named, resumed = made(["key", "query"])
resumed.load_state_dict(old.state_dict())
moments = {name: (float(old.state[old_named[name]]["exp_avg"][0, 0]), float(resumed.state[named[name]]["exp_avg"][0, 0])) for name in named}
names = resumed.state_dict()["param_groups"][0]["param_names"]
print("saved names", old.state_dict()["param_groups"][0]["param_names"], "- names after loading", names)
print("first moment when saved and after loading:", {name: tuple(round(value, 3) for value in pair) for name, pair in moments.items()})
assert moments["query"][0] == moments["key"][1] != moments["query"][1]
assert names == ["query", "key"]
vector = torch.optim.AdamW([("bias", torch.nn.Parameter(torch.zeros(3))), ("key", torch.nn.Parameter(torch.zeros(2, 2)))])
vector.load_state_dict(old.state_dict())
shapes = [tuple(state["exp_avg"].shape) for state in vector.state.values()]
print("the moments of a bias of 3 and a matrix:", shapes)
assert shapes == [(2, 2), (2, 2)]
PY
