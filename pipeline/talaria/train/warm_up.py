"""Meet before the first step what a GPU would meet during it: kernels and attention graphs are built when they are first used.

All ranks wait for the one that builds: over the first ten steps of two H200s the slowest took 4.3 times the median (2026-11-27).
The plan says which sizes will come. The loader's thread builds for what is further ahead; as Python stands still meanwhile, the
step beside it takes 0.1 to 0.2 s longer.
"""

from __future__ import annotations

import time
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
"""How many steps' sizes are met before the first, however long that takes."""
_CONVERSATIONS_AHEAD = 4096
_SECONDS_AHEAD = 1.5
"""And those of further steps, up to so many conversations, unless so much time went: what other starts on this host have built is
read from disk, in a tenth of the time."""


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
    alive()
    began, built = time.perf_counter(), 0
    for steps, count, longest in coming_sizes(loader.plan, loader.rank, start):
        if steps >= _STEPS and time.perf_counter() - began > _SECONDS_AHEAD:
            break
        build_ahead(model, count, longest)
        built += 1
    return built


def build_ahead(model: CausalLM, count: int, longest: int) -> None:
    """Build what a micro-batch of `count` conversations of at most `longest` tokens needs, unless it is there."""
    config = model.core.config
    attention.build_ahead(count, longest, config.num_attention_heads * head_width(config) // model.context.size)


def coming_sizes(plan: Plan, rank: int, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield (steps ahead, conversations, the longest's tokens) of a rank's micro-batches from step `start` (from 0) on."""
    most = max(_STEPS, _CONVERSATIONS_AHEAD // plan.global_batch)
    for steps, step in enumerate(islice(plan.walk(start), most)):
        for own in step.micro_batches[rank]:
            if len(own):
                yield steps, len(own), int(plan.lengths[own].max())


def _shortest(plan: Plan, own: Ints) -> Ints:
    """The shortest conversation of a micro-batch that has a target."""
    with_target = own[plan.targets[own] > 0]
    return with_target[[np.argmin(plan.lengths[with_target])]] if len(with_target) else own
