"""The training loop, read from top to bottom: set up, resume, step by step to the end, export."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import ConfigError
from pipeline.tokens.shards import TRAIN, VALIDATION, open_tokens
from pipeline.train import metrics, parallel
from pipeline.train.checkpoint import CheckpointError, Checkpoints
from pipeline.train.console import show_progress
from pipeline.train.export import Exporter, link_folder
from pipeline.train.folder import RunFolder
from pipeline.train.guards import SpikeDetector, StopSignal, Watchdog
from pipeline.train.heldout import HeldOut
from pipeline.train.identity import run_identity
from pipeline.train.loader import Loader, Prepared
from pipeline.train.model import describe, lay_out, layers, load_model
from pipeline.train.optim import AdamW
from pipeline.train.plan import Plan
from pipeline.train.staging import Staging
from pipeline.train.step import Outcome, Stepper
from pipeline.train.world import World, require_size

if TYPE_CHECKING:
    from pipeline.config import Config


@dataclass(frozen=True)
class Job:
    """What to train, from what, and where to."""

    config: Config
    tokens: Path
    base: Path
    output: Path

    @property
    def tokenizer(self) -> Path:
        """The tokens' own tokenizer, or the base model's for a data set that came without one."""
        return self.tokens / "tokenizer" if (self.tokens / "tokenizer").is_dir() else self.base


@dataclass(frozen=True)
class Position:
    """Where a run is: all that a checkpoint holds beside tensors."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evaluated: int = 0
    """The step of the last evaluation."""
    without_gain: int = 0
    """Evaluations since the best."""
    last_loss: float | None = None


class Trainer:
    """One rank's side of a run. Every method that talks to other ranks is called by all."""

    def __init__(self, job: Job, world: World, stop: StopSignal, watchdog: Watchdog) -> None:
        self.job, self.world, self.stop, self.watchdog, self.alive = job, world, stop, watchdog, watchdog.alive
        self.config, self.train = job.config, job.config.train
        self.folder = RunFolder(job.output)
        self.position = Position()
        require_size(world, self.train.num_processes, self.train.num_machines)
        self.progress = show_progress(world.leads)
        self.identity = run_identity(self.config, job.tokens, job.base)

    def run(self) -> None:
        """Train to the end, or to the step at which a rank was told to stop; the status says which."""
        status = self.folder.status() or {}
        if status.get("identity", self.identity) != self.identity:
            raise ConfigError(
                f"{self.job.output}: holds a run with other data, another base model or other settings; choose another --output."
            )
        if self.world.from_leader(status.get("state") == "done"):
            self._note(f"already done after {status['step']} steps: {self.job.output / 'model'}")
            return
        self._set_up()
        self._resume()
        finished = self._steps()
        self.checkpoints.finish()
        if finished:
            self._finish()
        else:
            self._preempted()
        self.checkpoints.close()

    # Setting up

    def _set_up(self) -> None:
        train, world = self.train, self.world
        splits = open_tokens(self.job.tokens)
        tokens = splits[TRAIN]
        assert tokens is not None
        self.tokens = tokens
        if not len(tokens):
            raise ConfigError(f"{self.job.tokens}: no conversation is left to train on; see the drops in its manifest.json.")
        self.alive("loading the model")
        model = load_model(self.job.base, train, world.device)
        self.flops = metrics.flop_count(model)
        self.plan = Plan(
            tokens.lengths,
            tokens.targets,
            global_batch=train.global_batch,
            max_tokens=train.max_tokens_per_device,
            ranks=world.size,
            epochs=train.epochs,
            seed=train.seed,
            quadratic=self.flops.quadratic,
            max_steps=train.max_steps,
        )
        self.plan.require_fitting(tokens.rows, self.config.tokenize.max_tokens)
        self.held_out = self._held_out(splits[VALIDATION])
        layout = parallel.choose_layout(train, world)
        trained = parallel.distribute(model, layers(model), train, layout, world)
        if not layout.sharded:
            lay_out(model)
        self.optimizer = AdamW([param for _, param in trained.named], trained.cut_off, train)
        self.model = model.train()
        self.stepper = Stepper(model, self.optimizer, trained.gradients, train, world, len(self.plan))
        staging = Staging(trained.named, self.optimizer, layout, world.device)
        self.checkpoints = Checkpoints(
            self.job.output / "checkpoints", world, staging, identity=self.identity, keep=train.keep_last, alive=self.alive
        )
        self.exporter = Exporter(
            model, self.optimizer, self.config, base=self.job.base, tokenizer=self.job.tokenizer, world=world
        )
        self.peak = metrics.peak_flops(world.device)
        self.layout = layout

    def _held_out(self, tokens: Any) -> HeldOut | None:
        train = self.train
        if tokens is None:
            for name, wanted in (("keep_best", train.keep_best), ("patience", train.patience), ("eval_every", train.eval_every)):
                if wanted:
                    raise ConfigError(f"train.{name} needs held-out conversations: set tokenize.validation_fraction above 0.")
            return None
        limit = max(train.max_tokens_per_device, int(tokens.lengths.max()))
        return HeldOut.of(tokens, max_tokens=limit, ranks=self.world.size, quadratic=self.flops.quadratic)

    def _resume(self) -> None:
        found = self.checkpoints.newest(lambda text: self._event("warning", text))
        if found:
            self.alive(f"loading {found.folder.name}")
            self.checkpoints.load(found)
            saved = dict(found.progress)
            ranks_then = saved.pop("world_size")
            self.position = Position(**saved)
            self.optimizer.steps_done = self.position.step
        if self.world.leads:
            self.folder.rewind(self.position.step)
            self.folder.set_status(
                "running",
                step=self.position.step,
                total_steps=len(self.plan),
                reason=None,
                kind=None,
                world_size=self.world.size,
                identity=self.identity,
            )
        balance, density = self.plan.sampled_quality()
        quality = {"balance": round(balance, 4), "density": round(density, 4), "world_size": self.world.size}
        shape = (
            f"{self.world.size} ranks on {self.world.device.type}, {self.layout}, balance {balance:.3f}, packing {density:.1%}"
        )
        if found:
            self._event("resume", f"from {found.folder.name}, saved on {ranks_then} ranks: {shape}", **quality)
        else:
            self._event("start", f"{len(self.plan)} steps on {shape}", **quality)
        self._note(describe(self.model))

    # Stepping

    def _steps(self) -> bool:
        """Train until the end (True) or until told to stop (False)."""
        self.spikes = SpikeDetector()
        self._status_at = time.monotonic()
        if not self._settle():
            return False
        loader = Loader(
            self.tokens,
            self.plan,
            rank=self.world.rank,
            device=self.world.device,
            start=self.position.step,
            depth=self.train.prefetch,
            per_sample=self.train.reduction == "sample",
        )
        if self._out_of_patience():
            return True
        with loader:
            before = time.perf_counter()
            for prepared in loader:
                outcome = self.stepper.run(prepared, self._stopping, self.alive)
                after = time.perf_counter()
                self.watchdog.stepping()
                self.position = replace(self.position, step=prepared.plan.index + 1, last_loss=outcome.loss)
                self._report(prepared, outcome, after - before, loader.wait_seconds)
                if outcome.stop or not self._settle():
                    return False
                if self._save_due():
                    self._save()
                if self._out_of_patience():
                    break
                before = time.perf_counter()
        return True

    def _settle(self) -> bool:
        """Do what the step just done owes: an evaluation, an export. False when told to stop meanwhile."""
        step = self.position.step
        ends_epoch = step > 0 and self.plan.ends_epoch(step)
        due = step > self.position.evaluated and (ends_epoch or self._every(self.train.eval_every))
        if due and self.held_out and not self._evaluate(self.held_out):
            return False
        if self.train.keep_epochs and ends_epoch and not self._export_place(step).exists():
            self._export("epoch")
        return True

    def _evaluate(self, held_out: HeldOut) -> bool:
        start = time.perf_counter()
        loss = held_out.loss(self.model, self.world, self._stopping, self.alive)
        if loss is None:
            return False
        step, best = self.position.step, self.position.best_loss
        better = best is None or loss < best
        former = self.position.best_step
        self.position = replace(
            self.position,
            evaluated=step,
            best_loss=loss if better else best,
            best_step=step if better else former,
            without_gain=0 if better else self.position.without_gain + 1,
        )
        if self.world.leads:
            record = {"step": step, "epoch": self._epoch(), "loss": loss, "supervised_tokens": held_out.targets}
            self.folder.evaluation({**record, "seconds": round(time.perf_counter() - start, 4), "time": time.time()})
            self.progress.note(f"held-out loss {loss:.4f} at step {step}")
        if better and self.train.keep_best:
            self._export("best")
            if self.world.leads and former and not (self.train.keep_epochs and self.plan.ends_epoch(former)):
                shutil.rmtree(self._export_place(former), ignore_errors=True)
        return True

    def _report(self, prepared: Prepared, outcome: Outcome, seconds: float, waited: float) -> None:
        if not self.world.leads:
            return
        plan, device = prepared.plan, self.world.device
        flops = self.flops.of(self.plan.lengths[plan.indices])
        record = {
            "step": self.position.step,
            "epoch": plan.epoch,
            "loss": outcome.loss,
            "supervised_tokens": plan.targets,
            "tokens": plan.tokens,
            "lr": outcome.lr,
            "grad_norm": outcome.grad_norm,
            "seconds": round(seconds, 6),
            "data_wait_seconds": round(waited, 6),
            "tokens_per_second": round(plan.tokens / seconds, 1),
            "mfu": round(flops / (seconds * self.peak * self.world.size), 5) if self.peak else None,
            "memory_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            "rows_checksum": f"{outcome.rows:x}",
            "time": time.time(),
        }
        self.folder.metrics(record)
        self.progress.step(record, len(self.plan))
        if self.spikes.spiked(outcome.loss):
            self._event("loss_spike", f"loss {outcome.loss:.4f} at step {self.position.step} is far above the last steps'")
        if time.monotonic() - self._status_at > 5:
            self._status_at = time.monotonic()
            self.folder.set_status("running", step=self.position.step)

    # Saving and ending

    def _save_due(self) -> bool:
        return self._every(self.train.save_every) or self.plan.ends_epoch(self.position.step)

    def _save(self) -> None:
        """Start a checkpoint; one that fails, on a full disk say, is reported and leaves those before it as they are."""
        self.alive("saving a checkpoint")
        try:
            self.checkpoints.save({**asdict(self.position), "world_size": self.world.size})
        except CheckpointError as error:
            self._event("warning", f"{error}; training goes on, and earlier checkpoints are kept")
            self.checkpoints.save({**asdict(self.position), "world_size": self.world.size})
        self._event("checkpoint", f"saving step {self.position.step}")

    def _preempted(self) -> None:
        self._save()
        self.checkpoints.finish()
        reason = f"told to stop ({self.stop.name or 'by another rank'}); the next start goes on from step {self.position.step}"
        if self.world.leads:
            self.folder.set_status("preempted", step=self.position.step, reason=reason)
        self._event("preempted", reason)

    def _finish(self) -> None:
        step, target = self.position.step, self.job.output / "model"
        self.alive("exporting the model")
        kept = self._export_place(step)
        if self.world.from_leader(kept.exists()):
            if self.world.leads:
                link_folder(kept, target)
        else:
            self.exporter.write(target, step)
        reason = None
        if step < len(self.plan):
            reason = f"stopped early: {self.position.without_gain} evaluations without a better held-out loss"
        self._event("done", reason or f"{step} steps", path="model")
        if self.world.leads:
            self.folder.set_status(
                "done", step=step, reason=reason, loss=self.position.last_loss, best_loss=self.position.best_loss
            )
        self.progress.close()

    def _export(self, why: str) -> None:
        step = self.position.step
        self.alive("exporting a model")
        self.exporter.write(self._export_place(step), step)
        self._event("export", f"{why}: exports/{self._export_place(step).name}", why=why, path=f"exports/step-{step:08d}")

    def _export_place(self, step: int) -> Path:
        return self.job.output / "exports" / f"step-{step:08d}"

    # Small things

    def _every(self, interval: int | None) -> bool:
        return bool(interval) and self.position.step > 0 and self.position.step % (interval or 1) == 0

    def _epoch(self) -> float:
        return min(self.position.step * self.train.global_batch, self.plan.stream) / len(self.tokens)

    def _out_of_patience(self) -> bool:
        return self.train.patience is not None and self.position.without_gain >= self.train.patience

    def _stopping(self) -> bool:
        return self.stop.name is not None

    def _event(self, kind: str, message: str, **more: Any) -> None:
        if self.world.leads:
            self.folder.event(kind, message, self.position.step, **more)
            self._note(f"{kind}: {message}")

    def _note(self, text: str) -> None:
        if self.world.leads:
            self.progress.note(text)
