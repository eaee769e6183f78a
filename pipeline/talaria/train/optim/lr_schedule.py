"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up from 0 to `peak`, then a cosine to `minimum` at the last of `total_steps`.

    Megatron-LM's OptimizerParamScheduler; its warm-up, a fraction of the steps, is not rounded.
    """

    peak: float
    minimum: float
    warmup_fraction: float
    total_steps: int

    def __call__(self, step: int) -> float:
        """Return the rate of step `step`, counted from 0."""
        warmup = self.warmup_fraction * self.total_steps
        if warmup > 0 and step <= warmup:
            return self.peak * step / warmup
        if step > self.total_steps:
            return self.minimum
        ratio = (step - warmup) / (self.total_steps - warmup)
        return self.minimum + 0.5 * (math.cos(math.pi * ratio) + 1.0) * (self.peak - self.minimum)
