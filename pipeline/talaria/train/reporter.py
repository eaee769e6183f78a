"""Write a run's metrics, evaluations, events and status, and show its progress; only on rank 0."""

from __future__ import annotations

import time
from typing import Any

import torch

from talaria.runs.folder import OF_SOURCE, RunFolder
from talaria.train.batching.dataloader import Prepared
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.transport import shared_bytes
from talaria.train.telemetry import flops as metrics
from talaria.train.telemetry.console import show_progress
from talaria.train.telemetry.loss_spikes import SpikeDetector
from talaria.train.telemetry.mirrors import Mirrors
from talaria.train.train_step import StepResult
from talaria.train.validation import HeldOutLoss

_STATUS_SECONDS = 5.0


class Reporter:
    """Reporter of a run; does nothing on ranks other than 0."""

    def __init__(self, folder: RunFolder, group: ProcessGroup, mirrors: Mirrors) -> None:
        self.folder, self.group, self.mirrors = folder, group, mirrors
        self.progress = show_progress(group.is_main)
        self._spikes = SpikeDetector()
        self._peak = metrics.peak_flops(group.device)
        self._status_at = time.monotonic()

    def step(self, prepared: Prepared, outcome: StepResult, total: int, flops: float, seconds: float, waited: float) -> None:
        """`seconds`: the whole step's, of which `waited` for data."""
        if not self.group.is_main:
            return
        plan, device = prepared.plan, self.group.device
        record = {
            "step": plan.index + 1,
            "epoch": plan.epoch,
            "loss": outcome.loss,
            "supervised_tokens": plan.targets,
            "tokens": plan.tokens,
            "lr": outcome.lr,
            "grad_norm": outcome.grad_norm,
            "seconds": round(seconds, 6),
            "data_wait_seconds": round(waited, 6),
            "tokens_per_second": round(plan.tokens / seconds, 1),
            "mfu": round(flops / (seconds * self._peak * self.group.size), 5) if self._peak else None,
            "memory_bytes": torch.cuda.max_memory_allocated(device) + shared_bytes() if device.type == "cuda" else None,
            **{f"{OF_SOURCE}{name}": loss for name, loss in outcome.by_source.items()},
            "rows_checksum": f"{outcome.rows:x}",
            "time": time.time(),
        }
        self.folder.metrics(record)
        self.mirrors.log(record)
        self.progress.step(record, total)
        if self._spikes.spiked(outcome.loss):
            self.event(
                "loss_spike", f"loss {outcome.loss:.4f} at step {plan.index + 1} is far above the last steps'", plan.index + 1
            )
        if time.monotonic() - self._status_at > _STATUS_SECONDS:
            self._status_at = time.monotonic()
            self.status("running", step=plan.index + 1)

    def evaluation(self, step: int, epoch: float, found: HeldOutLoss, targets: int, seconds: float) -> None:
        if self.group.is_main:
            record = {"step": step, "epoch": epoch, "loss": found.loss, "supervised_tokens": targets}
            record |= {f"{OF_SOURCE}{name}": loss for name, loss in found.by_source.items()}
            self.mirrors.log(record, "held_out")
            self.folder.evaluation({**record, "seconds": round(seconds, 4), "time": time.time()})
            parts = ", ".join(f"{name} {loss:.4f}" for name, loss in found.by_source.items())
            self.note(f"held-out loss {found.loss:.4f} at step {step}" + (f" ({parts})" if parts else ""))

    def event(self, kind: str, message: str, step: int, **more: Any) -> None:
        if self.group.is_main:
            self.folder.event(kind, message, step, **more)
            self.note(f"{kind}: {message}")

    def status(self, state: Any, **fields: Any) -> None:
        if self.group.is_main:
            self.folder.set_status(state, **fields)

    def note(self, text: str) -> None:
        if self.group.is_main:
            self.progress.note(text)

    def close(self) -> None:
        self.progress.close()
        self.mirrors.close()
