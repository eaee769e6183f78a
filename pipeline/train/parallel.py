"""How a model lies over the ranks, and how its gradients come together.

Replicated ranks keep the whole model and add their gradients once a step. Sharded ranks (PyTorch's fully_shard) keep a part
of each parameter and fetch the rest layer by layer. Hybrid shards within groups of ranks and replicates over the groups.
All add up, and none averages: the loss is divided by the global count of targets before it is differentiated, so a gradient's
sum over ranks is the gradient, however the batch was split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from pipeline.errors import ConfigError
from pipeline.train.kernels_products import accumulate_into
from pipeline.train.optim import local, split_halves
from pipeline.train.world import World

if TYPE_CHECKING:
    from pipeline.config import Train


@dataclass(frozen=True)
class Layout:
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


def choose_layout(train: Train, world: World) -> Layout:
    """Raises ConfigError when the ranks cannot be grouped as asked."""
    kind = train.sharding
    if kind == "auto":
        on_gpu = world.device.type == "cuda"
        kind = "replicate" if world.size == 1 or not on_gpu else "shard" if world.size == world.local_size else "hybrid"
    if kind == "replicate":
        return Layout(world.size, 1)
    shards = world.size if kind == "shard" else train.shard_size or world.local_size
    if world.size % shards:
        raise ConfigError(f"train.shard_size: {world.size} ranks cannot be split into groups of {shards}.")
    return Layout(world.size // shards, shards)


class Gradients(Protocol):
    copies: int
    """How many ranks hold the same part of a gradient once it is reduced."""

    def expect(self, *, last: bool) -> None:
        """Say whether the next backward pass is the step's last."""

    def reduce(self) -> list[Tensor]:
        """Finish the step's sums over micro-batches and ranks; this rank's part of each gradient."""

    def clear(self) -> None:
        """Forget the gradients."""


class ReplicatedGradients:
    """Gradients of a whole model, accumulated in one flat buffer and added over ranks in one call.

    Fused layers add to it inside their products. What autograd gives for bf16 parameters under mixed precision is added, in
    fp32, and dropped at once.
    """

    def __init__(self, params: Sequence[nn.Parameter], dtype: torch.dtype, world: World) -> None:
        self.world = world
        self.copies = world.size
        self.flat = torch.zeros(sum(param.numel() for param in params), dtype=dtype, device=world.device)
        pieces = self.flat.split([param.numel() for param in params])  # type: ignore[no-untyped-call]
        self.grads = [piece.view_as(param) for piece, param in zip(pieces, params, strict=True)]
        for param, grad in zip(params, self.grads, strict=True):
            accumulate_into(param, grad)
            if param.dtype == dtype:
                param.grad = grad
            else:
                param.register_post_accumulate_grad_hook(_AddGradient(grad))  # type: ignore[no-untyped-call]

    def expect(self, *, last: bool) -> None:
        pass

    def reduce(self) -> list[Tensor]:
        if self.world.size > 1:
            dist.all_reduce(self.flat)
        return self.grads

    def clear(self) -> None:
        self.flat.zero_()


class ShardedGradients:
    """fully_shard adds over ranks during the step's last backward pass."""

    def __init__(self, model: FSDPModule, params: Sequence[nn.Parameter], layout: Layout) -> None:
        self.model, self.params = model, params
        self.copies = layout.replicas

    def expect(self, *, last: bool) -> None:
        self.model.set_requires_gradient_sync(last)

    def reduce(self) -> list[Tensor]:
        return [torch.zeros_like(local(p.detach())) if p.grad is None else local(p.grad) for p in self.params]

    def clear(self) -> None:
        for param in self.params:
            param.grad = None


@dataclass(frozen=True)
class Trained:
    """What the optimiser works on: every trained parameter, by name, and its gradients."""

    named: list[tuple[str, nn.Parameter]]
    cut_off: list[Tensor | None]
    """Per parameter: the 16 bits that its bf16 form lacks of the fp32 master, or None where the parameter is the master."""
    gradients: Gradients


def distribute(model: nn.Module, units: Sequence[nn.Module], train: Train, layout: Layout, world: World) -> Trained:
    """Lay the model, fp32 or under precision bf16 in bf16, out in place. `units`: modules that sharded ranks fetch as a whole."""
    lowered = torch.bfloat16 if train.precision == "mixed" else None
    if lowered:
        for param in model.parameters():
            if not param.requires_grad:  # beneath an adapter: no update is ever added to it
                param.data = param.data.to(lowered)
    if layout.sharded:
        _shard(model, units, lowered, layout, world)
    named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    params = [param for _, param in named]
    assert all(isinstance(param, DTensor) for param in params) == layout.sharded
    if isinstance(model, FSDPModule):
        return Trained(named, [None] * len(params), ShardedGradients(model, params, layout))
    cut_off = [_lower(param) if lowered else None for param in params]
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    return Trained(named, cut_off, ReplicatedGradients(params, dtype, world))


def _shard(model: nn.Module, units: Sequence[nn.Module], lowered: torch.dtype | None, layout: Layout, world: World) -> None:
    mesh = layout.mesh(world.device.type)
    policy = MixedPrecisionPolicy(param_dtype=lowered, reduce_dtype=torch.float32 if lowered else None, cast_forward_inputs=False)
    for module in (*units, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
        assert isinstance(module, FSDPModule)
        # Sums, not means; gloo has no other reduction either.
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)


def _lower(param: nn.Parameter) -> Tensor:
    """Make a parameter bf16 in place; what that cuts off."""
    high, cut = split_halves(param.detach())
    param.data = high
    return cut


class _AddGradient:
    """Post-accumulate hook: add a parameter's gradient to its total and free it."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def __call__(self, param: Tensor) -> None:
        if param.grad is not None:  # else a fused layer has added it already
            self.total.add_(param.grad)
            param.grad = None
