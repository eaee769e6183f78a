"""Build everything that a rank needs before its first step from the configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.errors import ConfigError, DataError
from talaria.runs.folder import CHECKPOINTS, HOST_MEMORY
from talaria.tokenization.dataset import TRAIN, VALIDATION, open_tokens
from talaria.train.batching.plan import Plan
from talaria.train.checkpoint import snapshot
from talaria.train.checkpoint.manager import CheckpointManager
from talaria.train.checkpoint.staging import Staging
from talaria.train.distributed import sharding as parallel
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.export import Exporter
from talaria.train.model.causal_lm import CausalLM, ModelOptions, layers, require_fixed_positions
from talaria.train.model.loading import all_are_trained, load_model
from talaria.train.model.lora import LoraOptions
from talaria.train.optim.adamw import AdamW
from talaria.train.optim.bf16_masters import spread_masters
from talaria.train.optim.lr_schedule import LRSchedule
from talaria.train.optimizer import (
    make_optimizer,
    stream_beside_layers,
)
from talaria.train.placement import packed_tokens, place
from talaria.train.telemetry import flops as metrics
from talaria.train.telemetry.source_losses import Sources
from talaria.train.telemetry.watchdog import Alive
from talaria.train.train_state import TrainJob
from talaria.train.train_step import TrainStep
from talaria.train.validation import Validation

if TYPE_CHECKING:
    from talaria.config.train_settings import Train
    from talaria.tokenization.dataset import Tokens

_GATHERED = 8192
"""Conversations looked at together."""


@dataclass(frozen=True)
class Components:
    tokens: Tokens
    held_out: Validation | None
    plan: Plan
    flops: metrics.FlopCount
    model: CausalLM
    layout: parallel.ReplicaLayout
    optimizer: AdamW
    stepper: TrainStep
    checkpoints: CheckpointManager
    exporter: Exporter
    warnings: list[str]
    """What can be trained, but hardly is what was meant."""
    sources: Sources | None
    weights_follow: bool
    """Whether the model's weights hold anything until a checkpoint is loaded."""


def build(job: TrainJob, group: ProcessGroup, identity: str, alive: Alive) -> Components:
    """Collective. Raises ConfigError or DataError for what cannot be trained, before any step is made."""
    train = job.config.train
    splits = open_tokens(job.tokens)
    tokens, every = splits[TRAIN], [split for split in splits.values() if split]
    if tokens is None or not len(tokens):
        raise DataError(f"{job.tokens}: no conversation is left to train on; its manifest.json counts what was dropped and why.")
    alive("loading the model")
    options = model_options(train)
    weights_follow = all_are_trained(options) and snapshot.expected(host_memory(train), identity, group)
    model = load_model(job.base, options, group.device, weights_follow=weights_follow)
    require_fixed_positions(model, max(int(split.lengths.max(initial=0)) for split in every))
    if job.tokenizer == job.base:
        _require_known_ids(every, model.core.config.vocab_size, job.tokens)
    if train.precision == "mixed" and model.stored_in_bf16 and not train.lora.rank and not weights_follow:
        spread_masters((name, param) for name, param in model.named_parameters() if param.requires_grad)
    flops = metrics.flop_count(model)
    placed = place(model, train, tokens, group)
    trained, layout = placed.trained, placed.layout
    plan = _plan(tokens, train, packed_tokens(model, train, placed), group.size, flops.quadratic)
    plan.require_fitting(tokens.rows, job.config.tokenize.max_tokens)
    schedule = LRSchedule(train.lr, train.min_lr, train.warmup_fraction, len(plan), train.schedule, train.decay_fraction)
    held_out = _held_out(splits[VALIDATION], train, group.size, flops.quadratic)
    optimizer = make_optimizer(train, trained, placed.memory, placed.away, placed.host)
    sources = Sources.of(tokens, per_sample=train.reduction == "sample")
    names, shared = [name for name, _ in trained.named], {"copies": train.snapshot_copies, "sharers": group.local_size}
    staging = Staging(names, optimizer, group.device, host_memory(train), group.rank, **shared)
    checkpoints = CheckpointManager(
        job.output / CHECKPOINTS, group, staging, identity=identity, keep=train.keep_last, alive=alive
    )
    stream_beside_layers(layers(model), optimizer, trained.gradients, staging.fence)
    stepper = TrainStep(
        model,
        optimizer,
        trained.gradients,
        schedule,
        group,
        fence=checkpoints.fence,
        clip=train.clip,
        reduction=train.reduction,
        seed=train.seed,
        compare_every=train.compare_every if layout.replicas > 1 and not layout.sharded else 0,
        sources=sources,
    )
    return Components(
        tokens=tokens,
        held_out=held_out,
        plan=plan,
        flops=flops,
        model=model.train(),
        layout=layout,
        optimizer=optimizer,
        stepper=stepper,
        checkpoints=checkpoints,
        exporter=Exporter(model, optimizer, trained, job, group),
        warnings=[*_odd_numbers(train, schedule, plan), *placed.warnings],
        sources=sources,
        weights_follow=weights_follow,
    )


def _plan(tokens: Tokens, train: Train, packed_tokens: int, ranks: int, quadratic: float) -> Plan:
    """packed_tokens: most of a micro-batch of several conversations, where a rank has all tokens of it to itself."""
    spread = train.context_parallel_size
    return Plan(
        tokens.lengths,
        tokens.targets,
        global_batch=train.global_batch,
        max_tokens=spread * train.max_tokens_per_device,
        packed_tokens=spread * packed_tokens,
        ranks=ranks // spread,
        epochs=train.epochs,
        seed=train.seed,
        quadratic=quadratic,
        max_steps=train.max_steps,
    )


def host_memory(train: Train) -> Path | None:
    """The launcher's folder in memory, which outlives this rank; None where there is none, or no snapshots are made.

    With all of the optimizer's state in host memory there are none: a rank that dies in an update leaves it half changed.
    """
    folder = os.environ.get(HOST_MEMORY)
    return Path(folder) if folder and train.snapshot_seconds and train.offload != "optimizer" else None


def _require_known_ids(splits: Sequence[Tokens], vocab_size: int, folder: Path) -> None:
    """Raise DataError for an id that the model has no row for; a tokens folder without a tokenizer says nothing of its ids."""
    for split in splits:
        for start in range(0, len(split), _GATHERED):
            ids, _, _ = split.gather(range(start, min(start + _GATHERED, len(split))))
            if len(ids) and not 0 <= ids.min() <= ids.max() < vocab_size:
                raise DataError(
                    f"{folder}: has the token id {ids.max()}, but the model embeds {vocab_size}; use its own tokenizer."
                )


def _odd_numbers(train: Train, schedule: LRSchedule, plan: Plan) -> list[str]:
    """Return what is odd about the numbers of a run. Raises ConfigError where nothing would be trained that was to be."""
    steps, found = len(plan), []
    if not any(schedule(step) for step in range(steps)):
        nothing = f"the run has {steps} step, whose learning rate is 0, as warm-up begins with 0"
        if train.max_steps is None:
            raise ConfigError(f"{nothing}; set train.warmup_fraction to 0, or lower train.global_batch ({train.global_batch}).")
        found.append(f"{nothing}: nothing is trained")
    elif schedule.warmup_fraction * steps > steps - 1:
        found.append(f"warm-up (train.warmup_fraction {train.warmup_fraction:g}) is as long as the run of {steps} steps")
    if len(plan.lengths) < train.global_batch:
        found.append(
            f"the {len(plan.lengths)} conversations are fewer than train.global_batch ({train.global_batch}): "
            "a step trains some of them more than once, or is short"
        )
    return found


def model_options(train: Train) -> ModelOptions:
    lora = (
        LoraOptions(train.lora.rank, train.lora.alpha, train.lora.dropout, train.lora.targets, train.seed)
        if train.lora.rank
        else None
    )
    return ModelOptions(
        precision=train.precision,
        activation_checkpointing=train.activation_checkpointing,
        kernels=train.kernels,
        deterministic=train.deterministic,
        fp8=train.fp8,
        lora=lora,
        loss=train.loss,
        trainable=train.trainable,
        freeze=train.freeze,
    )


def _held_out(tokens: Tokens | None, train: Train, ranks: int, quadratic: float) -> Validation | None:
    if tokens is None:
        for name, wanted in (("keep_best", train.keep_best), ("patience", train.patience), ("eval_every", train.eval_every)):
            if wanted:
                raise ConfigError(
                    f"train.{name} needs held-out conversations: "
                    "set tokenize.validation_fraction (or sources.NAME.held_out) above 0."
                )
        return None
    # Without gradients there is room for a held-out conversation longer than those that are trained.
    limit = max(train.max_tokens_per_device, int(tokens.lengths.max()))
    return Validation.of(tokens, max_tokens=limit, ranks=ranks, quadratic=quadratic)
