"""Two models on the same items: how much better one is, and how much of that chance explains.

Losses and scores: the studentized (bootstrap-t) interval of the paired, weighted mean difference; Efron & Tibshirani, An
Introduction to the Bootstrap (1993), chapter 12. Right and wrong: McNemar's exact test, and the interval of Clopper and Pearson
(1934) that goes with it. Nothing here draws differently on another day: the seed is fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
CONFIDENCE = 0.95
DRAWS = 2000
_AT_ONCE = 2_000_000
"""Items resampled at a time, over all draws."""
_FEWEST = 6
"""Items that differ: with fewer, chance alone favours one model in all of them more often than once in twenty times."""


@dataclass(frozen=True)
class Pairs:
    """Improvements of one model over another, float64[n], positive where it is better; weights: float64[n], above 0."""

    improvements: Floats
    weights: Floats

    @property
    def mean(self) -> float:
        """The weighted mean improvement."""
        return float(self.improvements @ self.weights / self.weights.sum())

    @property
    def right_or_wrong(self) -> bool:
        """Whether items count alike and are won, lost or equal, nothing between."""
        return bool(np.isin(self.improvements, (-1.0, 0.0, 1.0)).all() and (self.weights == 1.0).all())

    @cached_property
    def resampled(self) -> Resampled:
        return _resample(self.improvements, self.weights)


@dataclass(frozen=True)
class Resampled:
    """A mean and its standard error, and those of DRAWS samples of the same items, drawn with replacement."""

    mean: float
    error: float
    means: Floats
    errors: Floats


@dataclass(frozen=True)
class Interval:
    """An improvement, its interval of CONFIDENCE, and the two-sided p of no difference where the test is exact."""

    mean: float
    low: float
    high: float
    p: float | None = None


def improvement(parts: Sequence[tuple[float, Pairs]]) -> Interval:
    """Return the weighted sum of several metrics' improvements; (1.0, pairs) alone is one metric's own.

    Metrics are resampled independently of one another. Where too few items differ, the interval has no end.
    """
    if len(parts) == 1 and parts[0][1].right_or_wrong:
        factor, pairs = parts[0]
        found = mcnemar(int((pairs.improvements > 0).sum()), int((pairs.improvements < 0).sum()), len(pairs.improvements))
        return Interval(factor * found.mean, factor * found.low, factor * found.high, found.p)
    mean = sum(factor * pairs.mean for factor, pairs in parts)
    differ = sum(int(np.count_nonzero(pairs.improvements)) for _, pairs in parts)
    if differ == 0:
        return Interval(0.0, 0.0, 0.0)
    if differ < _FEWEST:
        return Interval(mean, -math.inf, math.inf)
    drawn = [(factor, pairs.resampled) for factor, pairs in parts]
    error = math.sqrt(sum((factor * one.error) ** 2 for factor, one in drawn))
    if error == 0:  # every item improved alike
        return Interval(mean, mean, mean)
    shifts = np.sum([factor * (one.means - one.mean) for factor, one in drawn], axis=0)
    errors = np.sqrt(np.sum([(factor * one.errors) ** 2 for factor, one in drawn], axis=0))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(shifts == 0, 0.0, shifts / errors)
    tail = (1 - CONFIDENCE) / 2
    low = np.quantile(ratios, tail, method="lower")
    high = np.quantile(ratios, 1 - tail, method="higher")
    return Interval(mean, float(mean - high * error), float(mean - low * error))


def _resample(values: Floats, weights: Floats) -> Resampled:
    """Sums over the items of a sample are a product of how often each was drawn with what is summed."""
    summed = weights * values
    columns = np.stack([summed, weights, summed**2, summed * weights, weights**2], axis=1)
    mean = summed.sum() / weights.sum()
    error = math.sqrt(max(0.0, float(((summed - mean * weights) ** 2).sum()))) / weights.sum()
    total, weight, squares, mixed, weight_squares = np.concatenate([times @ columns for times in _samples(len(values))]).T
    means = total / weight
    spread = squares - 2 * means * mixed + means**2 * weight_squares
    spread[spread < 1e-12 * squares] = 0.0  # rounding
    return Resampled(float(mean), float(error), means, np.sqrt(spread) / weight)


def _samples(count: int) -> Iterator[Floats]:
    """Yield float64[rows, count], how often each of DRAWS samples holds each item, as many rows at a time as fit."""
    size = max(1, _AT_ONCE // count)
    if size >= DRAWS:
        yield _drawn(count)
        return
    random = np.random.default_rng(0)
    for first in range(0, DRAWS, size):
        yield _times(random, min(size, DRAWS - first), count)


@lru_cache(maxsize=2)
def _drawn(count: int) -> Floats:
    """The samples of few items, which every metric and rival shares."""
    return _times(np.random.default_rng(0), DRAWS, count)


def _times(random: np.random.Generator, rows: int, count: int) -> Floats:
    drawn = random.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)


def mcnemar(won: int, lost: int, items: int) -> Interval:
    """Return the difference in the share of right answers, from the items that only one of two models has right."""
    decided = won + lost
    if decided == 0:
        return Interval(0.0, 0.0, 0.0, 1.0)
    tail = (1 - CONFIDENCE) / 2
    low = _share(lambda share: _at_least(won, decided, share) - tail) if won else 0.0
    high = 1.0 - (_share(lambda share: _at_least(lost, decided, share) - tail) if lost else 0.0)
    p = min(1.0, 2 * _at_least(max(won, lost), decided, 0.5))
    scale = decided / items
    return Interval((won - lost) / items, (2 * low - 1) * scale, (2 * high - 1) * scale, p)


def _at_least(successes: int, trials: int, share: float) -> float:
    """P(X >= successes) for X binomial(trials, share)."""
    k = np.arange(successes, trials + 1)
    steps = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    chances = steps[trials] - steps[k] - steps[trials - k] + k * math.log(share) + (trials - k) * math.log1p(-share)
    return float(np.exp(chances).sum())


def _share(rising: Callable[[float], float]) -> float:
    """The root in (0, 1) of a function that rises, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low
