#!/usr/bin/env bash
# torch.distributed.checkpoint: `except Exception` does not catch a checkpoint that cannot be loaded.
#
# Versions: torch 2.13.0 (CPU)
# Guess:    a missing folder, key or another shape raise an Exception (FileNotFoundError, KeyError, ValueError).
# Seen:     load raises CheckpointException, with the original error inside, and this is a BaseException such as KeyboardInterrupt: neither
#           `except Exception` nor `except ValueError` see it. Another type of numbers is no error at all: weights of 0.5 are loaded into a
#           tensor of integers as 0.
# Effect:   "take the newest checkpoint that loads" ends at the first damaged one, and a cleanup for errors is left out. Catch
#           CheckpointException by name. Talaria reads its own files, and names what is damaged.
source "$(dirname "$0")/install.sh" torch==2.13.0 numpy
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

dcp.save({"weight": torch.full((2, 3), 0.5)}, checkpoint_id="newest")


def caught(state, folder="newest"):
    """What a loop over checkpoints sees of one that cannot be loaded."""
    try:
        try:
            dcp.load(state, checkpoint_id=folder)
        except Exception as error:
            return f"except Exception: {error}"
    except CheckpointException as error:
        (inner, _), *_ = error.failures.values()
        return f"not by except Exception; inside: {type(inner).__name__}: {str(inner)[:60]}"


for name, arguments in {
    "another shape": ({"weight": torch.zeros(3, 2)},),
    "a key that is not there": ({"bias": torch.zeros(3)},),
    "no such folder": ({"weight": torch.zeros(2, 3)}, "missing"),
}.items():
    print(f"{name}: {caught(*arguments)}")
    assert caught(*arguments).startswith("not by except Exception"), name
assert not issubclass(CheckpointException, Exception)
integers = {"weight": torch.ones(2, 3, dtype=torch.int32)}
dcp.load(integers, checkpoint_id="newest")
print("0.5 loaded into integers:", integers["weight"].tolist())
assert integers["weight"].tolist() == [[0, 0, 0], [0, 0, 0]]
PY
