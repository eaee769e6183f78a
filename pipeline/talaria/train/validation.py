"""Loss on held-out conversations during training, on the packed path that training takes."""

from __future__ import annotations

from collections.abc import Callable
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
class Validation:
    tokens: Tokens
    plan: Plan

    @staticmethod
    def of(tokens: Tokens, *, max_tokens: int, ranks: int, quadratic: float) -> Validation:
        step_tokens = _ROUNDS * ranks * max_tokens
        batch = max(1, int(step_tokens / max(1.0, float(tokens.lengths.mean()))))
        plan = Plan(tokens.lengths, tokens.targets, global_batch=batch, max_tokens=max_tokens, ranks=ranks, quadratic=quadratic)
        return Validation(tokens, plan)

    @property
    def targets(self) -> int:
        return int(self.plan.targets.sum())

    @torch.no_grad()
    def loss(self, model: nn.Module, group: ProcessGroup, stopping: Callable[[], bool], alive: Alive) -> float | None:
        """Return the mean NLL over all supervised targets, equal on every rank; None if a rank got a stop signal meanwhile."""
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
        return total / max(1, self.targets)
