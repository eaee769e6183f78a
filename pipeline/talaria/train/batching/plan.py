"""Which conversation is trained when and where: a pure function of lengths, seed and number of ranks.

Every rank computes the same plan, one step at a time, so nothing is communicated and nothing is prepared up front.
Epoch e's order is a permutation drawn from (seed, e) alone; step s takes the next `global_batch` conversations of the endless
stream epoch 0, 1, 2...; only the assignment of a step's conversations to ranks and micro-batches depends on the number of
ranks, and it changes no sum.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from talaria.common.errors import ConfigError
from talaria.train.batching.balance import balanced_bins

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepPlan:
    """One optimiser step. Indices are positions in the data set, not rows of the parquet."""

    index: int
    """Counted from 0."""
    epoch: float
    """Epochs seen once this step is done."""
    indices: Ints
    """The step's conversations in stream order."""
    micro_batches: tuple[tuple[Ints, ...], ...]
    """`[rank][k]`: conversations of rank's k-th micro-batch; every rank has as many, some may be empty."""
    tokens: int
    targets: int
    """Supervised targets of the global batch."""
    samples: int
    """Conversations with at least one supervised target."""
    balance: float
    """Work done over work waited for: all cost / (ranks x sum over k of the costliest k-th micro-batch)."""
    density: float
    """Tokens over capacity: tokens / (micro-batches x packed_tokens)."""


class Plan:
    """lengths, targets: int[N], tokens and supervised targets of each conversation (its first token is never a target).

    No micro-batch has more than `max_tokens`, and none of several conversations more than `packed_tokens` (absent: max_tokens).
    `quadratic`: cost of a conversation of n tokens is n + quadratic * n^2.
    `seed` None keeps the stored order (held-out data).
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        targets: npt.ArrayLike,
        *,
        global_batch: int,
        max_tokens: int,
        packed_tokens: int | None = None,
        ranks: int = 1,
        epochs: int = 1,
        seed: int | None = None,
        quadratic: float = 0.0,
        max_steps: int | None = None,
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.targets = np.asarray(targets, dtype=np.int64)
        assert self.lengths.shape == self.targets.shape
        self.global_batch = global_batch
        self.max_tokens = max_tokens
        self.packed_tokens = packed_tokens or max_tokens
        self.ranks = ranks
        self.seed = seed
        self.quadratic = quadratic
        self.stream = len(self.lengths) * epochs
        self.full_steps = -(-self.stream // global_batch)
        self.steps = min(self.full_steps, max_steps or self.full_steps)
        self._order = functools.lru_cache(maxsize=2)(self._draw_order)

    def __len__(self) -> int:
        """Return the number of optimiser steps."""
        return self.steps

    def require_fitting(self, rows: npt.ArrayLike, max_tokens_kept: int) -> None:
        """Raise ConfigError if a conversation is longer than a micro-batch may be."""
        too_long = np.flatnonzero(self.lengths > self.max_tokens)
        if len(too_long):
            worst = too_long[np.argmax(self.lengths[too_long])]
            raise ConfigError(
                f"row {np.asarray(rows)[worst]}: its {self.lengths[worst]} tokens do not fit into train.max_tokens_per_device "
                f"({self.max_tokens}); raise that or train.context_parallel_size, or lower tokenize.max_tokens "
                f"({max_tokens_kept}). {len(too_long)} of {len(self.lengths)} conversations are too long."
            )

    def epochs_done(self, steps: int) -> int:
        """Return the number of complete epochs after so many steps."""
        return self._seen(steps) // max(1, len(self.lengths))

    def ends_epoch(self, steps: int) -> bool:
        """Return whether the last of so many steps finishes an epoch or the run."""
        return steps == self.steps or self.epochs_done(steps) > self.epochs_done(steps - 1)

    def indices(self, index: int) -> Ints:
        """Return the conversations of step `index` (from 0) in stream order; the last step may be short."""
        start, end = index * self.global_batch, self._seen(index + 1)
        parts = []
        while start < end:
            epoch, offset = divmod(start, len(self.lengths))
            part = self._order(epoch)[offset : offset + end - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts).astype(np.int64)

    def step(self, index: int) -> StepPlan:
        indices = self.indices(index)
        lengths = self.lengths[indices]
        assert lengths.max(initial=0) <= self.max_tokens
        costs = lengths * (1.0 + self.quadratic * lengths)
        rounds = balanced_bins(lengths, costs, ranks=self.ranks, capacity=self.packed_tokens)
        waited = sum(max(float(costs[bin].sum()) for bin in ranks) for ranks in rounds) * self.ranks
        tokens = int(lengths.sum())
        return StepPlan(
            index=index,
            epoch=self._seen(index + 1) / len(self.lengths),
            indices=indices,
            micro_batches=tuple(tuple(indices[ranks[rank]] for ranks in rounds) for rank in range(self.ranks)),
            tokens=tokens,
            targets=int(self.targets[indices].sum()),
            samples=int(np.count_nonzero(self.targets[indices])),
            balance=float(costs.sum()) / waited if waited else 1.0,
            density=tokens / (len(rounds) * self.ranks * self.packed_tokens),
        )

    def walk(self, start: int = 0) -> Iterator[StepPlan]:
        """Yield the steps from `start` (from 0) to the end."""
        return map(self.step, range(start, self.steps))

    def sampled_quality(self, steps: int = 32) -> tuple[float, float]:
        """Return mean balance and packing density over steps spread evenly over the run."""
        chosen = np.unique(np.linspace(0, self.steps - 1, min(steps, self.steps)).astype(int))
        plans = [self.step(int(index)) for index in chosen]
        return float(np.mean([plan.balance for plan in plans])), float(np.mean([plan.density for plan in plans]))

    def _seen(self, steps: int) -> int:
        return min(steps * self.global_batch, self.stream)

    def _draw_order(self, epoch: int) -> npt.NDArray[np.int32]:
        count = len(self.lengths)
        if self.seed is None:
            return np.arange(count, dtype=np.int32)
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, epoch])))
        return generator.permutation(np.arange(count, dtype=np.int32))
