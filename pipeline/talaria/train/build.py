"""Everything a rank needs before its first step, put together from the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from talaria.common.errors import ConfigError, DataError
from talaria.tokenization.dataset import TRAIN, VALIDATION, open_tokens
from talaria.train.batching.plan import Plan
from talaria.train.checkpoint.manager import Checkpoints
from talaria.train.checkpoint.staging import Staging
from talaria.train.distributed import sharding as parallel
from talaria.train.distributed.process_group import World
from talaria.train.export import Exporter
from talaria.train.model.activation_memory import USABLE
from talaria.train.model.causal_lm import CausalLM, lay_out, layers, load_model
from talaria.train.optim.adamw import AdamW
from talaria.train.telemetry import flops as metrics
from talaria.train.telemetry.watchdog import Alive
from talaria.train.train_state import Job
from talaria.train.train_step import Stepper
from talaria.train.validation import HeldOut

if TYPE_CHECKING:
    from talaria.config.schema import Train
    from talaria.tokenization.dataset import Tokens


@dataclass(frozen=True)
class Parts:
    tokens: Tokens
    held_out: HeldOut | None
    plan: Plan
    flops: metrics.FlopCount
    model: CausalLM
    layout: parallel.Layout
    optimizer: AdamW
    stepper: Stepper
    checkpoints: Checkpoints
    exporter: Exporter


def set_up(job: Job, world: World, identity: str, alive: Alive) -> Parts:
    """Collective. Raises ConfigError or DataError for what cannot be trained, before any step is made."""
    train = job.config.train
    splits = open_tokens(job.tokens)
    tokens = splits[TRAIN]
    if tokens is None or not len(tokens):
        raise DataError(f"{job.tokens}: no conversation is left to train on; its manifest.json counts what was dropped and why.")
    alive("loading the model")
    model = load_model(job.base, train, world.device)
    flops = metrics.flop_count(model)
    memory = min(world.gather(parallel.device_memory(world.device)))  # all ranks must decide the same by it
    layout = parallel.choose_layout(train, world, parallel.state_bytes(model, train), memory)
    trained = parallel.distribute(model, layers(model), train, layout, world, memory)
    if not layout.sharded:
        lay_out(model)
    model.later = trained.later
    plan = Plan(
        tokens.lengths,
        tokens.targets,
        global_batch=train.global_batch,
        max_tokens=train.max_tokens_per_device,
        packed_tokens=_packed_tokens(model, train, trained, memory),
        ranks=world.size,
        epochs=train.epochs,
        seed=train.seed,
        quadratic=flops.quadratic,
        max_steps=train.max_steps,
    )
    plan.require_fitting(tokens.rows, job.config.tokenize.max_tokens)
    held_out = _held_out(splits[VALIDATION], train, world.size, flops.quadratic)
    optimizer = AdamW([param for _, param in trained.named], trained.cut_off, train)
    staging = Staging(trained.named, optimizer, layout, world.device)
    return Parts(
        tokens=tokens,
        held_out=held_out,
        plan=plan,
        flops=flops,
        model=model.train(),
        layout=layout,
        optimizer=optimizer,
        stepper=Stepper(model, optimizer, trained.gradients, train, world, len(plan)),
        checkpoints=Checkpoints(job.output / "checkpoints", world, staging, identity=identity, keep=train.keep_last, alive=alive),
        exporter=Exporter(model, optimizer, job, world),
    )


def _packed_tokens(model: CausalLM, train: Train, trained: parallel.Trained, memory: int) -> int:
    """Most tokens of a micro-batch of several conversations."""
    on_gpu = model.core.lm_head.weight.is_cuda
    if not on_gpu or train.activation_checkpointing != "auto" or trained.fetched_anew:
        return train.max_tokens_per_device
    return model.footprint.packed_tokens(train.max_tokens_per_device, USABLE * memory - trained.state)


def _held_out(tokens: Tokens | None, train: Train, ranks: int, quadratic: float) -> HeldOut | None:
    if tokens is None:
        for name, wanted in (("keep_best", train.keep_best), ("patience", train.patience), ("eval_every", train.eval_every)):
            if wanted:
                raise ConfigError(f"train.{name} needs held-out conversations: set tokenize.validation_fraction above 0.")
        return None
    # Without gradients there is room for a held-out conversation longer than those that are trained.
    limit = max(train.max_tokens_per_device, int(tokens.lengths.max()))
    return HeldOut.of(tokens, max_tokens=limit, ranks=ranks, quadratic=quadratic)
