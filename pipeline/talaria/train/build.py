"""Build everything that a rank needs before its first step from the configuration."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from talaria.common.errors import ConfigError, DataError
from talaria.runs.folder import CHECKPOINTS, HOST_MEMORY
from talaria.tokenization.dataset import TRAIN, VALIDATION, open_tokens
from talaria.train.batching.plan import Plan
from talaria.train.checkpoint import snapshot
from talaria.train.checkpoint.manager import CheckpointManager
from talaria.train.checkpoint.staging import Staging
from talaria.train.distributed import sharding as parallel
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.transport import shared_bytes
from talaria.train.export import Exporter
from talaria.train.kernels.context_parallel import ContextGroup, context_group
from talaria.train.model.activation_memory import USABLE
from talaria.train.model.causal_lm import CausalLM, ModelOptions, keep_rounded, lay_out, layers, require_fixed_positions
from talaria.train.model.loading import all_are_trained, load_model
from talaria.train.model.lora import LoraOptions
from talaria.train.optim.adamw import AdamW
from talaria.train.optim.bf16_masters import spread_masters
from talaria.train.optim.lr_schedule import LRSchedule
from talaria.train.optimizer import (
    bytes_away,
    lock_host_memory,
    make_optimizer,
    require_offloadable,
    state_away,
    stream_beside_layers,
)
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
    tokens = splits[TRAIN]
    if tokens is None or not len(tokens):
        raise DataError(f"{job.tokens}: no conversation is left to train on; its manifest.json counts what was dropped and why.")
    alive("loading the model")
    options = model_options(train)
    weights_follow = all_are_trained(options) and snapshot.expected(host_memory(train), identity, group)
    model = load_model(job.base, options, group.device, weights_follow=weights_follow)
    every = [split for split in splits.values() if split]
    require_fixed_positions(model, max(int(split.lengths.max(initial=0)) for split in every))
    if job.tokenizer == job.base:
        _require_known_ids(every, model.core.config.vocab_size, job.tokens)
    if train.precision == "mixed" and model.stored_in_bf16 and not train.lora.rank and not weights_follow:
        spread_masters((name, param) for name, param in model.named_parameters() if param.requires_grad)
    flops = metrics.flop_count(model)
    memory = min(group.gather(parallel.device_memory(group.device)))  # all ranks must decide the same by it
    offloaded = train.offload == "optimizer"
    replicated = parallel.state_bytes(model, train.precision, group.size, offloaded=offloaded)
    layout = parallel.choose_layout(train.sharding, train.shard_size, group, replicated, memory)
    if offloaded:
        require_offloadable(model, train, layout, group)
    how: dict[str, Any] = {"offloaded": offloaded, "fused": model.fused, "lay_out": functools.partial(lay_out, model)}
    trained = parallel.distribute(model, layers(model), train.precision, layout, group, **how)
    room = USABLE * memory - trained.state if model.core.lm_head.weight.is_cuda else None
    away: list[int] = []
    host: list[list[Tensor]] | None = []
    refused: list[str] = []
    if not layout.sharded:
        away = state_away(train, model, trained, group, room, float(tokens.lengths.mean()) * train.global_batch / group.size)
        host = lock_host_memory([trained.spans[index].count for index in away], group)
        if host is None:
            refused, away = [_not_locked(bytes_away(train, trained, away))], []
        room = keep_rounded(model, room and room + bytes_away(train, trained, away))
    spread = train.context_parallel_size
    model.context = _context_group(model, spread, group)
    model.transient_bytes = trained.transient + shared_bytes()
    plan = Plan(
        tokens.lengths,
        tokens.targets,
        global_batch=train.global_batch,
        max_tokens=spread * train.max_tokens_per_device,
        packed_tokens=spread * _packed_tokens(model, train, room, sharded=layout.sharded),
        ranks=group.size // spread,
        epochs=train.epochs,
        seed=train.seed,
        quadratic=flops.quadratic,
        max_steps=train.max_steps,
    )
    plan.require_fitting(tokens.rows, job.config.tokenize.max_tokens)
    schedule = LRSchedule(train.lr, train.min_lr, train.warmup_fraction, len(plan), train.schedule, train.decay_fraction)
    held_out = _held_out(splits[VALIDATION], train, group.size, flops.quadratic)
    optimizer = make_optimizer(train, trained, memory, away, host or ())
    sources = Sources.of(tokens, per_sample=train.reduction == "sample")
    names, shared = [name for name, _ in trained.named], {"copies": train.snapshot_copies, "sharers": group.local_size}
    staging = Staging(names, optimizer, group.device, host_memory(train), group.rank, **shared)
    checkpoints = CheckpointManager(
        job.output / CHECKPOINTS, group, staging, identity=identity, keep=train.keep_last, alive=alive
    )
    stream_beside_layers(layers(model), optimizer, trained.gradients, staging.fence)
    return Components(
        tokens=tokens,
        held_out=held_out,
        plan=plan,
        flops=flops,
        model=model.train(),
        layout=layout,
        optimizer=optimizer,
        stepper=TrainStep(
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
        ),
        checkpoints=checkpoints,
        exporter=Exporter(model, optimizer, trained, job, group),
        warnings=[*_odd_numbers(train, schedule, plan), *_other_layout(train, layout, group), *refused],
        sources=sources,
        weights_follow=weights_follow,
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


def _other_layout(train: Train, layout: parallel.ReplicaLayout, group: ProcessGroup) -> list[str]:
    """What to tell where ranks that were to be sharded are not."""
    if train.sharding not in ("shard", "hybrid") or layout.sharded or group.size == 1:
        return []
    return [f"train.sharding is {train.sharding}, but the whole model fits on each rank: ranks are replicated, which is faster"]


def _not_locked(size: int) -> str:
    return (
        f"train.offload is auto, but the host memory for {size / 1e9:.1f} GB of the optimizer's state could not be page-locked "
        "(ulimit -l): all of it stays on the GPU, and micro-batches are smaller"
    )


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


def _context_group(model: CausalLM, size: int, group: ProcessGroup) -> ContextGroup:
    """Collective. Raises ConfigError where so many ranks cannot share the tokens of a conversation."""
    config = model.core.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    faults = {
        f"{group.size} ranks cannot be split into groups of so many": group.size % size,
        f"the model's {heads} heads cannot be shared out evenly among so many": heads % size,
        f"the model's {kv_heads} key and value heads cannot be shared out evenly among so many": kv_heads % size
        and size % kv_heads,
        f"the layers run as transformers wrote them ({model.plain_because})": size > 1 and not model.fused,
    }
    for fault in (fault for fault, holds in faults.items() if holds):
        raise ConfigError(f"train.context_parallel_size is {size}, but {fault}; lower it, or leave it at 1.")
    return context_group(group.rank, group.size, size)


def _packed_tokens(model: CausalLM, train: Train, room: float | None, *, sharded: bool) -> int:
    """Most tokens of a micro-batch of several conversations. room: bytes for activations; None if they are not counted.

    Sharded ranks make them as large as they may be: each fetches all weights twice and adds all gradients up.
    """
    if room is None or train.activation_checkpointing != "auto" or sharded:
        return train.max_tokens_per_device
    return model.activations.packed_tokens(train.max_tokens_per_device, room)


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
