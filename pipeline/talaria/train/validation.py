"""Loss on held-out conversations during training, on the packed path that training takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from talaria.train.batching.dataloader import Loader
from talaria.train.batching.plan import Plan
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.model.causal_lm import sum_loss
from talaria.train.telemetry.watchdog import Alive

if TYPE_CHECKING:
    from talaria.tokenization.dataset import Tokens

_ROUNDS = 8
"""Micro-batches per rank between two checks of the stop signal."""


@dataclass(frozen=True)
class HeldOutLoss:
    loss: float
    """Mean NLL over all supervised targets."""
    by_source: Mapping[str, float]
    """The same of each source of a mixture; empty for data of a single one."""

    @classmethod
    def of(cls, totals: Mapping[str, float], targets: Mapping[str, int]) -> HeldOutLoss:
        """From each part's summed NLL and number of targets."""
        mean = sum(totals.values()) / max(1, sum(targets.values()))
        several = {name: total / max(1, targets[name]) for name, total in totals.items() if name}
        return cls(mean, several)


@dataclass(frozen=True)
class Validation:
    """Held-out conversations, source by source."""

    parts: Mapping[str, SourceLoss]

    @staticmethod
    def of(tokens: Tokens, *, max_tokens: int, ranks: int, quadratic: float) -> Validation:
        by_source = tokens.by_source or {"": tokens}
        plans = {
            name: SourceLoss.of(part, max_tokens=max_tokens, ranks=ranks, quadratic=quadratic) for name, part in by_source.items()
        }
        return Validation(plans)

    @property
    def targets(self) -> int:
        return sum(part.targets for part in self.parts.values())

    def loss(self, model: nn.Module, group: ProcessGroup, stopping: Callable[[], bool], alive: Alive) -> HeldOutLoss | None:
        """Return the losses, equal on every rank; None if a rank got a stop signal meanwhile."""
        totals: dict[str, float] = {}
        for name, part in self.parts.items():
            total = part.total(model, group, stopping, alive)
            if total is None:
                return None
            totals[name] = total
        return HeldOutLoss.of(totals, {name: part.targets for name, part in self.parts.items()})


@dataclass(frozen=True)
class SourceLoss:
    """The held-out conversations of one source, and how they are spread over ranks and micro-batches."""

    tokens: Tokens
    plan: Plan

    @staticmethod
    def of(tokens: Tokens, *, max_tokens: int, ranks: int, quadratic: float) -> SourceLoss:
        step_tokens = _ROUNDS * ranks * max_tokens
        batch = max(1, int(step_tokens / max(1.0, float(tokens.lengths.mean()))))
        plan = Plan(tokens.lengths, tokens.targets, global_batch=batch, max_tokens=max_tokens, ranks=ranks, quadratic=quadratic)
        return SourceLoss(tokens, plan)

    @property
    def targets(self) -> int:
        return int(self.plan.targets.sum())

    @torch.no_grad()
    def total(self, model: nn.Module, group: ProcessGroup, stopping: Callable[[], bool], alive: Alive) -> float | None:
        """Return the summed NLL of all supervised targets, equal on every rank; None if a rank got a stop signal meanwhile."""
        total = 0.0
        model.eval()
        try:
            with Loader(self.tokens, self.plan, rank=group.rank, device=group.device) as loader:
                for prepared in loader:
                    alive("evaluating")
                    losses = torch.stack([sum_loss(model, batch).double() for batch in prepared.batches])
                    part, stop = group.sum([float(losses.sum()), float(stopping())])
                    if stop:
                        return None
                    total += part
        finally:
            model.train()
        return total
