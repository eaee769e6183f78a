#!/usr/bin/env bash
# torch: load_state_dict(assign=True) unties a tied head, changes the model's precision, and leaves the optimizer with the old weights.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    assign=True loads the same as without, but saves a copy: what is tied stays tied, the type is the model's, training goes on.
# Seen:     each key gets a parameter of its own: head and embedding are two from then on, of the file's type (float16 in a float32 model).
#           An optimizer made before updates parameters that no longer belong to the model: each step runs, and no weight changes. Nothing is
#           said; the result says that all keys matched.
# Effect:   a resumed run that trains nothing, or trains head and embedding apart and is saved with a head that the config calls tied. Load first,
#           tie again, then make the optimizer. Talaria copies into the weights that are there.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 4)
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.embedding(ids))


def resumed(assign, make_first):
    """Whether head and embedding are one, their type, and whether an optimizer step changes the model."""
    torch.manual_seed(0)
    saved = {name: weight.half() for name, weight in Tied().state_dict().items()}
    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0) if make_first else None
    told = model.load_state_dict(saved, assign=assign)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.embedding.weight.detach().clone()
    model(torch.tensor([1])).sum().backward()
    optimizer.step()
    changed = not torch.equal(before, model.embedding.weight)
    found = (model.head.weight is model.embedding.weight, model.head.weight.dtype, changed)
    print(f"assign={assign}, optimizer made {'before' if make_first else 'after'}: tied {found[0]}, {found[1]}, trained {changed}; {told}")
    return found


assert resumed(assign=False, make_first=True) == (True, torch.float32, True)
assert resumed(assign=True, make_first=True) == (False, torch.float16, False)
assert resumed(assign=True, make_first=False) == (False, torch.float16, True)
PY
