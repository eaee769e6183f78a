"""Loss spikes: a step whose loss stands out from those before it."""

from __future__ import annotations

import collections
import math
import statistics


class SpikeDetector:
    """Detect a loss far above the last steps': more than 6 mean absolute deviations over their median."""

    def __init__(self, window: int = 64, least: int = 16, factor: float = 6.0) -> None:
        self.recent: collections.deque[float] = collections.deque(maxlen=window)
        self.least, self.factor = least, factor

    def spiked(self, loss: float) -> bool:
        spiked = False
        if len(self.recent) >= self.least and math.isfinite(loss):
            middle = statistics.median(self.recent)
            spread = statistics.fmean(abs(value - middle) for value in self.recent)
            spiked = loss - middle > self.factor * max(spread, 0.01 * abs(middle))
        self.recent.append(loss)
        return spiked
