"""One optimiser step: micro-batches in, sums over ranks, checks, an update out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from talaria.train.batching.dataloader import Prepared
from talaria.train.batching.packing import MicroBatch
from talaria.train.distributed import replicas
from talaria.train.distributed.gradients import Gradients
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.replicas import ReplicasDiffer
from talaria.train.model.causal_lm import CausalLM, sum_loss
from talaria.train.optim.adamw import AdamW
from talaria.train.optim.lr_schedule import LRSchedule
from talaria.train.telemetry.flops import row_checksum
from talaria.train.telemetry.source_losses import Sources
from talaria.train.telemetry.watchdog import Alive, NotFinite


class Due(NamedTuple):
    """What is to be done after a step because a signal or a clock says so: one rank's word is enough for all."""

    stop: bool = False
    save: bool = False
    snapshot: bool = False


@dataclass(frozen=True)
class StepResult:
    loss: float
    """Mean over the global batch's supervised targets, or over its conversations (train.reduction)."""
    grad_norm: float
    """Before clipping."""
    lr: float
    rows: int
    """Checksum of the rows that were trained."""
    due: Due
    """What a rank asks for, agreed by all."""
    by_source: Mapping[str, float]
    """The loss of each source that the step trained; empty for data of a single one."""


class TrainStep:
    def __init__(
        self,
        model: CausalLM,
        optimizer: AdamW,
        gradients: Gradients,
        schedule: LRSchedule,
        group: ProcessGroup,
        *,
        fence: Callable[[], None],
        clip: float,
        reduction: Literal["token", "sample"],
        seed: int,
        compare_every: int,
        sources: Sources | None,
    ) -> None:
        self.model, self.optimizer, self.gradients = model, optimizer, gradients
        self.fence = fence
        """Called before an update: what still reads the state (a checkpoint's copy) is waited for."""
        self.schedule, self.group, self.clip, self.reduction, self.seed = schedule, group, clip, reduction, seed
        self.sources = sources
        self._of_sources: list[Tensor] = []
        """float64[sources] of each micro-batch: their shares of the step's loss."""
        self.compare_every = compare_every
        """Steps between comparisons of the ranks' weights; 0: they do not all hold the same."""

    def run(self, prepared: Prepared, due: Callable[[], Due], alive: Alive) -> StepResult:
        """Raises, on every rank and with the parameters untouched, NotFinite if loss or gradient norm is no finite number, and
        ReplicasDiffer if ranks that should hold the same weights do not."""
        plan = prepared.plan
        self.model.step = plan.index
        seed_own_loss(self.seed, plan.index, self.group.rank)
        self._of_sources.clear()
        losses = self._accumulate(prepared, alive)
        parts = self.gradients.reduce()
        self.optimizer.prepare(parts)
        squares = self.gradients.squared_norm(parts)
        rows = [batch.rows for batch in prepared.batches]
        compared = replicas.weights_digest(self.optimizer.params) if self._compares(plan.index) else None
        mine: list[float | Tensor] = [losses.sum(), squares, float(row_checksum(np.concatenate(rows)))]
        mine += map(float, due())
        digest = [] if compared is None else replicas.for_sum(compared)
        of_sources = torch.stack(self._of_sources).sum(0).unbind() if self._of_sources else ()
        loss, square, checksum, *others = self.group.sum([*mine, *of_sources, *digest])  # here the host waits for the device
        asked, others = others[: len(Due._fields)], others[len(Due._fields) :]
        shares, digests = others[: len(of_sources)], others[len(of_sources) :]
        if digests and not replicas.all_equal(digests, self.group.size):
            raise ReplicasDiffer(plan.index + 1, self.group.gather(compared))
        norm = square**0.5
        if not (np.isfinite(loss) and np.isfinite(norm)):
            raise self._not_finite(prepared, losses, loss, norm)
        lr = self.schedule(plan.index)
        self.fence()
        self.optimizer.step(parts, lr, min(1.0, self.clip / (norm + 1e-6)))
        self.gradients.clear()
        by_source = self.sources.means(shares, plan.indices) if self.sources else {}
        return StepResult(loss, norm, lr, int(checksum), Due(*map(bool, asked)), by_source)

    def _compares(self, index: int) -> bool:
        return self.compare_every > 0 and (index + 1) % self.compare_every == 0

    def _accumulate(self, prepared: Prepared, alive: Alive) -> Tensor:
        """Forward and backward of each micro-batch; their shares of the loss, float64[micro-batches]."""
        plan = prepared.plan
        denominator = max(1, plan.targets if self.reduction == "token" else plan.samples)
        losses = []
        for number, batch in enumerate(prepared.batches, start=1):
            alive(f"in step {plan.index + 1}, micro-batch {number} of {len(prepared.batches)}")
            self.gradients.expect(last=number == len(prepared.batches))
            loss = sum_loss(self.model, batch, 1 / denominator)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach().double())
            if self.sources:
                self._of_sources.append(self._sums_of_sources(batch))
        return torch.stack(losses)

    def _sums_of_sources(self, batch: MicroBatch) -> Tensor:
        """float64[sources]; a rank that has nothing to do in a round has none."""
        assert self.sources
        each = self.model.target_losses
        if each is None or batch.sources is None:
            return torch.zeros(len(self.sources.names), dtype=torch.float64, device=batch.input_ids.device)
        return self.sources.sums(each, batch.sources)

    def _not_finite(self, prepared: Prepared, losses: Tensor, loss: float, norm: float) -> NotFinite:
        bad = [
            rows
            for rows, value in zip((b.rows.tolist() for b in prepared.batches), losses.tolist(), strict=True)
            if not np.isfinite(value)
        ]
        found = [row for part in self.group.gather(bad) for rows in part for row in rows]
        step = prepared.plan.index + 1
        everything = [
            row for part in self.group.gather([b.rows.tolist() for b in prepared.batches]) for rows in part for row in rows
        ]
        named = sorted(found or everything)
        where = "micro-batches with rows" if found else "batch of rows"
        return NotFinite(
            f"step {step}: loss {loss}, gradient norm {norm}; stopped before the update. In the {where} {named}.", named
        )


def seed_own_loss(seed: int, step: int, rank: int) -> None:
    """What a user's own loss draws depends on (seed, step, rank) alone, so a run resumed on the same ranks draws it again."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))
