"""lr_schedule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from talaria.config.schema import Train


def learning_rate(step: int, total: int, train: Train) -> float:
    """Rate of step `step` (from 0) of `total`: linear from 0 in warm-up, then a cosine to min_lr.

    Megatron-LM's OptimizerParamScheduler; its warm-up, a fraction of the steps, is not rounded.
    """
    warmup = train.warmup_fraction * total
    if warmup > 0 and step <= warmup:
        return train.lr * step / warmup
    if step > total:
        return train.min_lr
    ratio = (step - warmup) / (total - warmup)
    return train.min_lr + 0.5 * (math.cos(math.pi * ratio) + 1.0) * (train.lr - train.min_lr)
