"""The training loop, read from top to bottom: set up, resume, step by step to the end, export."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, TypeVar

from talaria.base_model.model_size import CHECKPOINT_BYTES
from talaria.common.errors import ConfigError
from talaria.runs.folder import MODEL, RunFolder, exported
from talaria.runs.identity import run_identity
from talaria.train.batching.dataloader import Loader
from talaria.train.build import Components, build, host_memory
from talaria.train.checkpoint.manager import CheckpointError, FoundCheckpoint
from talaria.train.checkpoint.save_clock import SaveClock
from talaria.train.checkpoint.snapshot import forget
from talaria.train.distributed.process_group import ProcessGroup, require_size
from talaria.train.distributed.replicas import ReplicasDiffer
from talaria.train.export import link_folder
from talaria.train.model.causal_lm import describe
from talaria.train.reporter import Reporter
from talaria.train.telemetry.mirrors import Mirrors, require_installed
from talaria.train.telemetry.profiler import StepProfiler
from talaria.train.telemetry.watchdog import StopSignal, Watchdog
from talaria.train.train_state import TrainJob, TrainState
from talaria.train.train_step import Due
from talaria.train.validation import Validation
from talaria.train.warm_up import build_ahead, warm_up

T = TypeVar("T")
_PATIENCE = 0.5
"""Seconds that the first try of a save waits for the one before it. Later tries, one a step, do not wait."""


class Trainer:
    """One rank's side of a run. Every method that talks to other ranks is called by all."""

    components: Components

    def __init__(self, job: TrainJob, group: ProcessGroup, stop: StopSignal, watchdog: Watchdog) -> None:
        self.job, self.group, self.stop, self.watchdog, self.alive = job, group, stop, watchdog, watchdog.alive
        self.train = job.config.train
        self.folder = RunFolder(job.output)
        require_installed(self.train.report_to)
        services = self.train.report_to if group.is_main else []
        self.report = Reporter(self.folder, group, Mirrors(services, job.config.name, job.output, job.config.flat()))
        self.state = TrainState()
        self.clock = SaveClock(self.train.save_minutes, self.train.snapshot_seconds)
        self._owes_save = False

    def run(self) -> None:
        """Train to the end, or to the step at which a rank was told to stop; the status says which."""
        require_size(self.group, self.train.num_processes, self.train.num_machines)
        identity = run_identity(self.job.config, self.job.tokens, self.job.base, self.job.output)
        status = self.group.broadcast(self.folder.status())
        if status.get("identity", identity) != identity:
            raise ConfigError(
                f"{self.job.output}: holds a run with other data, another base model or other settings; choose another --output."
            )
        if status.get("state") == "done":
            self.report.note(f"already done after {status['step']} steps: {self.job.output / 'model'}")
            return
        self.components = build(self.job, self.group, identity, self.alive)
        found = self._newest()
        self.state = TrainState.of(found.progress) if found else TrainState()
        loader = self._loader()
        self._warm_up(loader)  # beside the locking of memory, for which a snapshot waits
        self._resume(found, identity)
        try:
            through = self._steps(loader)
        except ReplicasDiffer:
            self.components.checkpoints.void_snapshots()  # they may hold the flipped bit
            raise
        if through:
            self._finish()
        else:
            self._preempted()
        self.components.checkpoints.close()
        self.report.close()

    def _newest(self) -> FoundCheckpoint | None:
        found = self.components.checkpoints.newest(lambda text: self._event("warning", text))
        memory = host_memory(self.train)
        if self.components.weights_follow and not found and memory:
            forget(memory, self.group.rank)  # ranks that are started again read the base's weights
            raise RuntimeError("the snapshot in memory was expected to hold the weights, and does not fit these ranks")
        return found

    def _resume(self, found: FoundCheckpoint | None, identity: str) -> None:
        components = self.components
        balance, density = components.plan.sampled_quality()  # beside the locking of memory too
        if found:
            self.alive(f"loading {found}")
            components.checkpoints.load(found)
            components.optimizer.steps_done = self.state.step
        if self.group.is_main:
            self._forget_later_steps()
        total = len(components.plan)
        running = {"step": self.state.step, "total_steps": total, "world_size": self.group.size, "identity": identity}
        self.report.status("running", reason=None, kind=None, **running)
        quality = {"balance": round(balance, 4), "density": round(density, 4), "world_size": self.group.size}
        shape = f"{self.group.size} ranks on {self.group.device.type}, {components.layout}, balance {balance:.3f}, "
        shape += f"packing {density:.1%} of {components.plan.packed_tokens:,} tokens"
        if found:
            self._event("resume", f"from {found}, saved on {found.progress['world_size']} ranks: {shape}", **quality)
        else:
            self._event("start", f"{total} steps on {shape}", **quality)
        for oddity in components.warnings:
            self._event("warning", oddity)
        self.report.note(describe(components.model))
        if components.checkpoints.staging.is_state:
            self.report.note(str(components.checkpoints.staging))
        elif away := components.optimizer.away:
            held = CHECKPOINT_BYTES[self.train.precision] * sum(components.optimizer.spans[index].count for index in away)
            self.report.note(f"{held / 1e9:.1f} GB of optimizer's state in host memory, so that micro-batches are larger")

    def _forget_later_steps(self) -> None:
        """What came after the checkpoint comes again, on other ranks perhaps with other last bits."""
        known = self.folder.rewind(self.state.step)
        if known != self.state.step:
            self._event("warning", f"metrics.jsonl has {known} of the {self.state.step} steps before: lines of it were damaged")
        for export in exported(self.job.output):
            if export > self.job.export(self.state.step):
                shutil.rmtree(export)

    def _loader(self) -> Loader:
        components = self.components
        context = components.model.context
        return Loader(
            components.tokens,
            components.plan,
            rank=self.group.rank // context.size,
            spread=(context.rank, context.size),
            device=self.group.device,
            start=self.state.step,
            depth=self.train.prefetch,
            per_sample=self.train.reduction == "sample",
            sources=components.sources.of_conversation if components.sources else None,
            on_size=functools.partial(build_ahead, components.model) if self._warms_up() else None,
        )

    def _warm_up(self, loader: Loader) -> None:
        components = self.components
        if self._warms_up() and self.state.step < len(components.plan):
            warm_up(components.model, components.stepper.gradients, loader, self.state.step, self.alive)

    def _steps(self, loader: Loader) -> bool:
        """Train until the end (True) or until told to stop (False)."""
        components = self.components
        if not self._run_due_evaluation_and_export():
            return False
        if self._out_of_patience():
            return True
        profiler = StepProfiler(self.train.profile_steps, self.job.output / "profile", is_main=self.group.is_main)
        with loader, profiler:
            before = time.perf_counter()
            for prepared in loader:
                outcome = components.stepper.run(prepared, self._due, self.alive)
                seconds = time.perf_counter() - before
                self.watchdog.stepping()
                self.state = replace(self.state, step=prepared.plan.index + 1, last_loss=outcome.loss)
                flops = components.flops.of(components.plan.lengths[prepared.plan.indices])
                self.report.step(prepared, outcome, len(components.plan), flops, seconds, loader.wait_seconds)
                profiler.step(self.state.step)
                if outcome.due.stop or not self._run_due_evaluation_and_export():
                    return False
                self._save_where_due(outcome.due)
                if self._out_of_patience():
                    break
                before = time.perf_counter()
        return True

    def _run_due_evaluation_and_export(self) -> bool:
        """Evaluate and export where the step just done calls for it. Returns False when told to stop meanwhile."""
        step = self.state.step
        ends_epoch = step > 0 and self.components.plan.ends_epoch(step)
        if self.train.keep_epochs and ends_epoch and not self._exported(step):
            self._export("epoch")
        due = step > self.state.evaluated and (ends_epoch or self._every(self.train.eval_every))
        return not (due and self.components.held_out) or self._evaluate(self.components.held_out)

    def _evaluate(self, held_out: Validation) -> bool:
        start, step, former = time.perf_counter(), self.state.step, self.state
        found = held_out.loss(self.components.model, self.group, self._stopping, self.alive)
        if found is None:
            return False
        loss = found.loss
        seen = min(step * self.train.global_batch, self.components.plan.stream) / len(self.components.tokens)
        self.report.evaluation(step, seen, found, held_out.targets, time.perf_counter() - start)
        if former.best_loss is not None and loss >= former.best_loss:
            self.state = replace(former, evaluated=step, without_gain=former.without_gain + 1)
            return True
        self.state = replace(former, evaluated=step, without_gain=0, best_loss=loss, best_step=step)
        if self.train.keep_best:
            self._export("best")
            if self.group.is_main and former.best_step and not self._kept_for_its_epoch(former.best_step):
                shutil.rmtree(self.job.export(former.best_step), ignore_errors=True)
        return True

    def _save_where_due(self, due: Due) -> None:
        """Start a checkpoint or a snapshot. One that is due while another is being written comes when that one is."""
        step = self.state.step
        owed = self._owes_save
        self._owes_save |= due.save or self._every(self.train.save_every) or self.components.plan.ends_epoch(step)
        if self._owes_save:
            self._owes_save = not self._save(patience=0.0 if owed else _PATIENCE)
        if due.snapshot:
            self.clock.copied()
            self._despite_a_failed_save(lambda: self.components.checkpoints.keep_in_memory(self._progress()))

    def _save(self, *, patience: float | None = None) -> bool:
        """Start a checkpoint; False where the one before is still being written after `patience` seconds, if any are given."""
        self.alive("saving a checkpoint")
        if not self._despite_a_failed_save(lambda: self.components.checkpoints.save(self._progress(), patience=patience)):
            return False
        self.clock.saved()
        self._event("checkpoint", f"saving step {self.state.step}")
        return True

    def _despite_a_failed_save(self, do: Callable[[], T]) -> T:
        """A save that failed, on a full disk say, is reported and leaves those before it as they are."""
        try:
            return do()
        except CheckpointError as error:
            self._event("warning", f"{error}; training goes on, and earlier checkpoints are kept")
            return do()

    def _progress(self) -> dict[str, Any]:
        return {**asdict(self.state), "world_size": self.group.size}

    def _preempted(self) -> None:
        self._save()
        self.components.checkpoints.finish()
        reason = f"told to stop ({self.stop.name or 'by another rank'}); the next start goes on from step {self.state.step}"
        self.report.status("preempted", step=self.state.step, reason=reason)
        self._event("preempted", reason)

    def _finish(self) -> None:
        """Export. The run is done even if its last checkpoint could not be written."""
        step, target = self.state.step, self.job.output / MODEL
        self.alive("exporting the model")
        if not self._exported(step):
            self.components.exporter.write(target, step)
        elif self.group.is_main:
            link_folder(self.job.export(step), target)
        self.group.broadcast(None)  # others wait: a rank that ended well must mean that the model is written
        try:
            self.components.checkpoints.finish()
        except CheckpointError as error:
            self._event("warning", str(error))
        early = f"stopped early: {self.state.without_gain} evaluations without a better held-out loss"
        reason = early if step < len(self.components.plan) else None
        self._event("done", reason or f"{step} steps", path="model")
        losses = {"loss": self.state.last_loss, "best_loss": self.state.best_loss}
        self.report.status("done", step=step, reason=reason, **losses)

    def _export(self, why: str) -> None:
        folder = self.job.export(self.state.step)
        if not self._exported(self.state.step):
            self.alive("exporting a model")
            self.components.exporter.write(folder, self.state.step)
        self._event("export", f"{why}: exports/{folder.name}", why=why, path=f"exports/{folder.name}")

    def _exported(self, step: int) -> bool:
        return bool(self.group.broadcast(self.job.export(step).exists()))

    def _every(self, interval: int | None) -> bool:
        return bool(interval) and self.state.step > 0 and self.state.step % (interval or 1) == 0

    def _kept_for_its_epoch(self, step: int) -> bool:
        return self.train.keep_epochs and self.components.plan.ends_epoch(step)

    def _out_of_patience(self) -> bool:
        return self.train.patience is not None and self.state.without_gain >= self.train.patience

    def _warms_up(self) -> bool:
        return self.group.device.type == "cuda"  # on a CPU nothing is built for a size

    def _due(self) -> Due:
        main = self.group.is_main
        return Due(self._stopping(), main and self.clock.save_due(), main and self.clock.snapshot_due())

    def _stopping(self) -> bool:
        return self.stop.name is not None

    def _event(self, kind: str, message: str, **more: object) -> None:
        self.report.event(kind, message, self.state.step, **more)
