"""Meet before the first step what a GPU would meet during it: kernels and attention graphs are built when they are first used.

All ranks wait for the one that builds: over the first ten steps of two H200s the slowest took 4.3 times the median (2026-11-27).
The plan says which sizes will come. The loader's thread builds for what is further ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from talaria.train.batching.dataloader import Loader
from talaria.train.batching.plan import Ints, Plan
from talaria.train.distributed.gradients import Gradients
from talaria.train.kernels import attention
from talaria.train.model.activation_memory import head_width
from talaria.train.model.causal_lm import CausalLM, sum_loss
from talaria.train.telemetry.watchdog import Alive

_STEPS = 8
"""How many steps' sizes are met before the first."""


def warm_up(model: CausalLM, gradients: Gradients, loader: Loader, start: int, alive: Alive) -> int:
    """Run one short conversation there and back, which compiles the kernels, and build what this rank's next steps need.

    `start`: the next step, counted from 0. Collective. Returns for how many sizes attention was built.
    """
    alive("warming up")
    step = loader.plan.step(start)
    gradients.expect(last=False)
    batch = loader.pack(_shortest(loader.plan, step.micro_batches[loader.rank][0])).to(loader.device)
    sum_loss(model, batch, 0.0).backward()  # type: ignore[no-untyped-call]
    gradients.clear()
    sizes = list(coming_sizes(loader.plan, loader.rank, start))
    for count, longest in sizes:
        alive()
        build_ahead(model, count, longest)
    return len(sizes)


def build_ahead(model: CausalLM, count: int, longest: int) -> None:
    """Build what a micro-batch of `count` conversations of at most `longest` tokens needs, unless it is there."""
    config = model.core.config
    attention.build_ahead(count, longest, config.num_attention_heads * head_width(config) // model.context.size)


def coming_sizes(plan: Plan, rank: int, start: int) -> Iterator[tuple[int, int]]:
    """Yield (conversations, the longest's tokens) of a rank's micro-batches in the steps from `start` (from 0) on."""
    for step in islice(plan.walk(start), _STEPS):
        for own in step.micro_batches[rank]:
            if len(own):
                yield len(own), int(plan.lengths[own].max())


def _shortest(plan: Plan, own: Ints) -> Ints:
    """The shortest conversation of a micro-batch that has a target."""
    with_target = own[plan.targets[own] > 0]
    return with_target[[np.argmin(plan.lengths[with_target])]] if len(with_target) else own
