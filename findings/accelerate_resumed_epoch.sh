#!/usr/bin/env bash
# accelerate: a run resumed in the middle of an epoch by its own recipe trains some rows again and others never.
#
# Versions: accelerate 1.15.0, torchdata 0.11.0, torch 2.13.0 (CPU)
# Guess:    save_state in the middle of an epoch, and in a new process load_state and skip_first_batches(loader, steps done), or a stateful
#           loader and no skipping, go on with the rest of that epoch.
# Seen:     the rest of another order comes. The default sampler draws the epoch's seed from torch's state, which is saved after that draw.
#           With use_seedable_sampler=True the order is epoch 0's, unless set_epoch is called, which load_state does not do. Only these two
#           together give the right rows, with skip_first_batches or with use_stateful_dataloader=True (torchdata).
# Effect:   nothing is said, and the loss looks right. Talaria's order is a function of the seed and the epoch, and its position a number.
source "$(dirname "$0")/install.sh" accelerate==1.15.0 torchdata==0.11.0 torch==2.13.0 numpy
cat > run.py <<'PY'
import sys

from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from torch.utils.data import DataLoader


def start(**how):
    """A run's beginning: an accelerator and a loader of the rows 0 to 11, four batches of three an epoch."""
    set_seed(0)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**how))
    return accelerator, accelerator.prepare(DataLoader(range(12), batch_size=3, shuffle=True))


def rows(loader):
    return [row for batch in loader for row in batch.tolist()]


def rest_of_epoch(set_epoch=False, skip=True, **how):
    """The rows that come after the interruption (2 of 4 batches of the second epoch), without it, and with it."""
    accelerator, loader = start(**how)
    rows(loader)
    batches = iter(loader)
    next(batches), next(batches)
    accelerator.save_state("state")
    expected = rows(batches)
    accelerator, loader = start(**how)
    accelerator.load_state("state")
    if set_epoch:
        loader.set_epoch(1)
    return expected, rows(accelerator.skip_first_batches(loader, 2) if skip else loader)


for name, how, right in (
    ("as it is", {}, False),
    ("use_seedable_sampler", {"use_seedable_sampler": True}, False),
    ("use_seedable_sampler, set_epoch", {"use_seedable_sampler": True, "set_epoch": True}, True),
    ("use_stateful_dataloader", {"use_stateful_dataloader": True, "skip": False}, False),
    ("both", {"use_stateful_dataloader": True, "use_seedable_sampler": True, "skip": False}, False),
    ("both, set_epoch", {"use_stateful_dataloader": True, "use_seedable_sampler": True, "set_epoch": True, "skip": False}, True),
):
    expected, resumed = rest_of_epoch(**how)
    print(f"{name}: the rest of the epoch is {expected}, resumed {resumed}")
    assert len(expected) == 6
    assert (resumed == expected) == right
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
