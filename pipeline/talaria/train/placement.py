"""Decide what of a model and its optimiser's state each rank holds where: whole or sharded, on the device or in host memory."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from talaria.common.errors import ConfigError
from talaria.train.distributed import sharding as parallel
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.trained_parameters import TrainedParameters
from talaria.train.distributed.transport import shared_bytes
from talaria.train.kernels.context_parallel import ContextGroup, context_group
from talaria.train.model.activation_memory import USABLE
from talaria.train.model.causal_lm import CausalLM, keep_rounded, lay_out, layers
from talaria.train.optimizer import bytes_away, lock_host_memory, require_offloadable, state_away

if TYPE_CHECKING:
    from talaria.config.train_settings import Train
    from talaria.tokenization.dataset import Tokens


@dataclass(frozen=True)
class Placed:
    """Where this rank holds the model and its share of the optimiser's state."""

    layout: parallel.ReplicaLayout
    trained: TrainedParameters
    memory: int
    """Bytes of the smallest device."""
    room: float | None
    """Bytes for activations; None if they are not counted."""
    away: list[int]
    """Indices of the parameters whose state is in `host`, page-locked memory."""
    host: list[list[Tensor]]
    warnings: list[str]


def place(model: CausalLM, train: Train, tokens: Tokens, group: ProcessGroup) -> Placed:
    """Collective: replicate the model or shard it, and move so much of the optimiser's state to the host as is wanted."""
    memory = min(group.gather(parallel.device_memory(group.device)))  # all ranks must decide the same by it
    offloaded = train.offload == "optimizer"
    replicated = parallel.state_bytes(model, train.precision, group.size, offloaded=offloaded)
    layout = parallel.choose_layout(train.sharding, train.shard_size, group, replicated, memory)
    if offloaded:
        require_offloadable(model, train, layout, group)
    how: dict[str, Any] = {"offloaded": offloaded, "fused": model.fused, "lay_out": functools.partial(lay_out, model)}
    trained = parallel.distribute(model, layers(model), train.precision, layout, group, **how)
    room = USABLE * memory - trained.state if model.core.lm_head.weight.is_cuda else None
    warnings = _other_layout(train, layout, group)
    away: list[int] = []
    host: list[list[Tensor]] | None = []
    if not layout.sharded:
        away = state_away(train, model, trained, group, room, float(tokens.lengths.mean()) * train.global_batch / group.size)
        host = lock_host_memory([trained.spans[index].count for index in away], group)
        if host is None:
            warnings.append(_not_locked(bytes_away(train, trained, away)))
            away = []
        room = keep_rounded(model, room and room + bytes_away(train, trained, away))
    model.context = _context_group(model, train.context_parallel_size, group)
    model.transient_bytes = trained.transient + shared_bytes()
    return Placed(layout, trained, memory, room, away, host or [], warnings)


def packed_tokens(model: CausalLM, train: Train, placed: Placed) -> int:
    """Most tokens of a micro-batch of several conversations.

    Sharded ranks make them as large as they may be: each fetches all weights twice and adds all gradients up.
    """
    if placed.room is None or train.activation_checkpointing != "auto" or placed.layout.sharded:
        return train.max_tokens_per_device
    return model.activations.packed_tokens(train.max_tokens_per_device, placed.room)


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
