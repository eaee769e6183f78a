"""How a model lies over the ranks.

Replicated ranks keep the whole model and share the optimiser's state. Sharded ranks keep a part of each parameter, fetch the rest
layer by layer, twice a micro-batch, and add each micro-batch's gradients up over the ranks: in a ring of two where these are
fused, alike and trained whole, else by PyTorch's fully_shard. Hybrid shards within groups of ranks, and replicates over them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from talaria.base_model.model_size import FROZEN_BYTES, STATE_BYTES
from talaria.common.errors import ConfigError
from talaria.train.distributed.gradients import ReplicatedGradients, ShardedGradients
from talaria.train.distributed.layer_ring import parameters_in_a_ring
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.trained_parameters import TrainedParameters
from talaria.train.distributed.transport import Collectives, choose_transport
from talaria.train.distributed.weight_gather import WeightGather
from talaria.train.optim.bf16_masters import split_halves
from talaria.train.optim.span import ParamSpan

Precision = Literal["mixed", "fp32", "bf16"]
Sharding = Literal["auto", "replicate", "shard", "hybrid"]

_FOR_STATE = 0.8
"""Share of a device's memory that weights, gradients and optimiser state may take; the rest is for activations."""

_BUFFERS = 20
"""Bytes a parameter of the largest unit for fully_shard's communication: what the allocator came to hold beside the rest. Without
them a GPU is filled to the brim, and an eighth slower (benchmarks/LOG.md)."""

SHARED_FROM = 1 << 18
"""Elements. A matrix of fewer has at most 3 MB of state; two collectives of its own a step take longer than its update."""


@dataclass(frozen=True)
class ReplicaLayout:
    """`replicas` groups of `shards` ranks; 1 shard: every rank has the whole model."""

    replicas: int
    shards: int

    @property
    def sharded(self) -> bool:
        return self.shards > 1

    def __str__(self) -> str:
        return f"{self.replicas} x {self.shards} (replicas x shards)"

    def mesh(self, device: str) -> DeviceMesh:
        """Two-dimensional where there is more than one replica; collective."""
        if self.replicas == 1:
            return init_device_mesh(device, (self.shards,), mesh_dim_names=("shard",))
        return init_device_mesh(device, (self.replicas, self.shards), mesh_dim_names=("replicate", "shard"))


def choose_layout(kind: Sharding, shard_size: int, group: ProcessGroup, state_bytes: float, memory: float) -> ReplicaLayout:
    """Ranks are replicated where a rank's `memory` holds what a replicated one does in a step, `state_bytes`; else sharded.

    So they are where `shard` or `hybrid` is asked for: ranks that are sharded between steps, but have room for whole weights and
    gradients in the midst of one, would hold more there, and pass both to and fro (benchmarks/LOG.md).
    Raises ConfigError when the ranks cannot be grouped as asked.
    """
    fits = group.size == 1 or state_bytes <= _FOR_STATE * memory
    if kind == "auto":
        kind = "replicate" if fits else "shard" if group.size == group.local_size else "hybrid"
    shards = shard_size or group.local_size if kind == "hybrid" else group.size
    if group.size % shards:
        raise ConfigError(f"train.shard_size: {group.size} ranks cannot be split into groups of {shards}.")
    return ReplicaLayout(group.size, 1) if fits or kind == "replicate" else ReplicaLayout(group.size // shards, shards)


def state_bytes(model: nn.Module, precision: Precision, sharing: int = 1, *, offloaded: bool = False) -> int:
    """Return the bytes of weights, gradients and optimiser state on each device of `sharing` ranks that share the last alone.

    `offloaded`: the last is in host memory.
    """
    held, shared = STATE_BYTES[precision]
    trained, frozen = held + (0 if offloaded else shared / sharing), FROZEN_BYTES[precision]
    return int(sum(param.numel() * (trained if param.requires_grad else frozen) for param in model.parameters()))


def device_memory(device: torch.device) -> int:
    """Bytes; of the whole machine on CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def distribute(
    model: nn.Module,
    units: Sequence[nn.Module],
    precision: Precision,
    layout: ReplicaLayout,
    group: ProcessGroup,
    *,
    offloaded: bool = False,
    fused: bool = False,
    lay_out: Callable[[], None] = lambda: None,
) -> TrainedParameters:
    """Lay the model, fp32 or under precision bf16 in bf16, out in place.

    `units`: modules that sharded ranks fetch, and replicated ranks add up, as a whole; `offloaded`: the optimiser's state will
    not be on the device; `fused`: units add their gradients to totals themselves; `lay_out`: orders whole weights in memory once
    their dtype is final, before anything holds on to it.
    """
    whole = state_bytes(model, precision)  # over the shards; replicated ranks share the optimiser's part of it alone
    lowered = torch.bfloat16 if precision == "mixed" else None
    if lowered:
        for param in model.parameters():
            if not param.requires_grad:  # beneath an adapter: no update is ever added to it
                param.data = param.data.to(lowered)
    in_a_ring = layout.sharded and layout.replicas == 1 and fused and _alike(units, group)
    if layout.sharded and not in_a_ring:
        _shard(model, units, lowered, layout, group)
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    params = [param for _, param in named]
    assert all(isinstance(param, DTensor) for param in params) == (layout.sharded and not in_a_ring)
    if isinstance(model, FSDPModule):
        sizes = [sum(param.numel() for param in unit.parameters()) for unit in units]
        buffers = _BUFFERS * max(*sizes, sum(param.numel() for param in model.parameters()) - sum(sizes))
        parts = sum(param.numel() for param in params) * (2 if precision == "bf16" else 4) // layout.shards
        gradients = ShardedGradients(model, params, layout.replicas)
        spans = [_rows(param) for param in params]
        state = whole // layout.shards + buffers
        return TrainedParameters(named, [None] * len(params), spans, gradients, state, transient=buffers + parts)
    spans = [_share(param, group) for param in params]
    low_bits = [_lower(param, span) if lowered else None for param, span in zip(params, spans, strict=True)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    groups = _by_unit(units, params)
    transport = choose_transport(group) if any(span.partial for span in spans) else Collectives(group)
    if in_a_ring:
        each = STATE_BYTES[precision]
        return parameters_in_a_ring(model, units, groups, named, spans, low_bits, dtype, group, transport, each)
    lay_out()
    gather = WeightGather(model, units, groups, params, spans, transport) if group.size > 1 else None
    return TrainedParameters(
        named,
        low_bits,
        spans,
        ReplicatedGradients(units, groups, params, spans, dtype, group, transport),
        state_bytes(model, precision, group.size, offloaded=offloaded) + transport.landing,
        gather=gather,
        groups=(groups[-1], *groups[:-1]),  # as the forward pass uses them: the embedding before the layers
    )


def _alike(units: Sequence[nn.Module], group: ProcessGroup) -> bool:
    """Whether a ring of two can hold all units by turns: all have the same shapes, are trained, and share out their matrices."""
    shapes = [[(param.shape, param.dtype) for param in unit.parameters()] for unit in units]
    params = [param for unit in units for param in unit.parameters()]
    trained = all(param.requires_grad for param in params)
    return trained and all(of == shapes[0] for of in shapes) and all(_share(p, group).partial for p in params if p.ndim >= 2)


def _by_unit(units: Sequence[nn.Module], params: Sequence[nn.Parameter]) -> list[list[int]]:
    """Return the indices of each unit's parameters, and of those outside of all units."""
    places = {id(param): index for index, param in enumerate(params)}
    inside = [[places.pop(id(param)) for param in unit.parameters() if id(param) in places] for unit in units]
    return [*inside, list(places.values())]


def _share(param: nn.Parameter, group: ProcessGroup) -> ParamSpan:
    """Return a replicated rank's even share of a matrix; vectors, and what cannot be shared evenly, each rank updates whole.

    So it does small matrices: their state is nothing beside a layer's, and all of them are added up in one call.
    """
    whole = param.numel()
    if param.ndim < 2 or whole < SHARED_FROM or whole % group.size:
        return ParamSpan(0, whole, whole, written_here=group.is_main)
    share = whole // group.size
    return ParamSpan(group.rank * share, (group.rank + 1) * share, whole)


def _rows(param: nn.Parameter) -> ParamSpan:
    """Return where a sharded parameter's local rows lie in it: fully_shard gives each rank ceil(rows / shards) in turn."""
    assert isinstance(param, DTensor)
    mesh = param.device_mesh
    shard, shards = (mesh.get_local_rank(mesh.ndim - 1), mesh.size(mesh.ndim - 1))
    rows, width = len(param), param.numel() // max(len(param), 1)
    share = -(-rows // shards)
    start, stop = min(shard * share, rows), min((shard + 1) * share, rows)
    return ParamSpan(start * width, stop * width, param.numel(), written_here=mesh.ndim == 1 or mesh.get_local_rank(0) == 0)


def _shard(
    model: nn.Module, units: Sequence[nn.Module], lowered: torch.dtype | None, layout: ReplicaLayout, group: ProcessGroup
) -> None:
    mesh = layout.mesh(group.device.type)
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32 if lowered else None, cast_forward_inputs=False)
    for module in (*units, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        # Sums, not means; gloo has no other reduction either.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    for module, following in pairwise((model, *units)):
        assert isinstance(module, FSDPModule)
        assert isinstance(following, FSDPModule)
        # Before this one's products are queued: by default the host asks for the next weights after them, and may be late.
        module.set_modules_to_forward_prefetch([following])


def _lower(param: nn.Parameter, span: ParamSpan) -> Tensor:
    """Make a parameter bf16 in place; return what that cuts off of this rank's stretch."""
    high, cut = split_halves(param.detach())
    param.data = high
    return cut.view(-1)[span.start : span.stop].clone() if span.partial else cut
