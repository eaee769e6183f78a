"""Meet before the first step what a GPU would meet during it: attention graphs and kernels are built for a size when it comes.

Each takes a tenth of a second or more, on every rank while the others wait: over the first ten steps of two H200s the slowest
took 4.3 times the median (2026-11-27). The plan says which sizes will come.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from torch import nn

from talaria.train.batching.dataloader import Loader
from talaria.train.batching.plan import Ints, Plan, StepPlan
from talaria.train.distributed.gradients import Gradients
from talaria.train.kernels.cudnn_attention import bucket, graph_conversations
from talaria.train.model.causal_lm import sum_loss
from talaria.train.telemetry.watchdog import Alive

_STEPS = 64
_ROUNDS = 16
"""Most rounds that are tried: what is rarer than these may cost a moment when it comes."""


def warm_up(model: nn.Module, gradients: Gradients, loader: Loader, start: int, alive: Alive) -> int:
    """Run a micro-batch of each size that steps from `start` (from 0) on will bring, there and back, and forget the gradients.

    Collective: every rank runs the same rounds. Returns how many.
    """
    rounds = list(islice(new_sizes(loader.plan, start), _ROUNDS))
    for number, (step, k) in enumerate(rounds, start=1):
        alive(f"warming up, {number} of {len(rounds)}")
        gradients.expect(last=False)
        batch = loader.pack(step.micro_batches[loader.rank][k]).to(loader.device)
        sum_loss(model, batch, 0.0).backward()  # type: ignore[no-untyped-call]
    gradients.clear()
    return len(rounds)


def new_sizes(plan: Plan, start: int) -> Iterator[tuple[StepPlan, int]]:
    """Yield (step, round) wherever a rank meets a size that it has not met before."""
    met: set[tuple[int, tuple[int, int]]] = set()
    for step in islice(plan.walk(start), _STEPS):
        for k in range(len(step.micro_batches[0])):
            sizes = {(rank, _size(plan.lengths[own[k]])) for rank, own in enumerate(step.micro_batches)}
            if sizes - met:
                met |= sizes
                yield step, k


def _size(lengths: Ints) -> tuple[int, int]:
    """Return what attention's graphs are built for: the number of conversations and the longest, as they are rounded up."""
    longest = bucket(int(lengths.max(initial=1)))
    return graph_conversations(len(lengths), longest), longest
