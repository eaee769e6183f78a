"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Kind = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True)
class LRSchedule:
    """Linear warm-up from 0 to `peak`, then down to `minimum` at the last of `total_steps`.

    cosine, linear: all the way (Megatron-LM's OptimizerParamScheduler; its warm-up, a fraction of the steps, is not rounded).
    constant: not at all. wsd (warm-up, stable, decay; Hu et al., 2024, MiniCPM): linearly in the last `decay_fraction` of the
    steps, constant before.
    """

    peak: float
    minimum: float
    warmup_fraction: float
    total_steps: int
    kind: Kind = "cosine"
    decay_fraction: float = 0.1

    def __call__(self, step: int) -> float:
        """Return the rate of step `step`, counted from 0."""
        warmup = self.warmup_fraction * self.total_steps
        if warmup > 0 and step <= warmup:
            return self.peak * step / warmup
        if self.kind == "constant":
            return self.peak
        if step > self.total_steps:
            return self.minimum
        begin = max(warmup, self.total_steps * (1 - self.decay_fraction)) if self.kind == "wsd" else warmup
        if step <= begin:
            return self.peak
        ratio = (step - begin) / (self.total_steps - begin)
        left = 0.5 * (math.cos(math.pi * ratio) + 1.0) if self.kind == "cosine" else 1.0 - ratio
        return self.minimum + left * (self.peak - self.minimum)
