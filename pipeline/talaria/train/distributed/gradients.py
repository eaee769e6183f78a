"""A step's gradients: summed over micro-batches, then over ranks.

Replicated ranks add theirs layer by layer beside the step's last backward pass; of sharded ranks fully_shard does it. All add up,
and none averages: the loss is divided by the global count of targets before it is differentiated, so a gradient's sum over ranks
is the gradient, however the batch was split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.kernels.matmul import accumulate_into
from talaria.train.optim.adamw import local


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

    Fused layers add to it inside their products, and in a step's last backward pass their stretches set off at once. What
    autograd gives for bf16 parameters under mixed precision is added, in fp32, and dropped at once.
    """

    def __init__(
        self, units: Sequence[nn.Module], params: Sequence[nn.Parameter], dtype: torch.dtype, group: ProcessGroup
    ) -> None:
        self.group = group
        self.last = False
        self._under_way: list[tuple[slice, dist.Work]] = []
        self.copies = group.size
        self.flat = torch.zeros(sum(param.numel() for param in params), dtype=dtype, device=group.device)
        pieces = self.flat.split([param.numel() for param in params])  # type: ignore[no-untyped-call]
        self.grads = [piece.view_as(param) for piece, param in zip(pieces, params, strict=True)]
        for param, grad in zip(params, self.grads, strict=True):
            accumulate_into(param, grad)
            if param.dtype == dtype:
                param.grad = grad
            else:
                param.register_post_accumulate_grad_hook(_AddGradient(grad))  # type: ignore[no-untyped-call]
        if group.size > 1:
            for unit in units:
                unit.register_forward_pre_hook(self._when_done(_stretch(unit, params)))

    def expect(self, *, last: bool) -> None:
        self.last = last

    def reduce(self) -> list[Tensor]:
        if self.group.size > 1:
            start = 0
            for stretch, work in sorted(self._under_way, key=lambda sent: sent[0].start):
                work.wait()
                self._add_up(slice(start, stretch.start))
                start = stretch.stop
            self._add_up(slice(start, len(self.flat)))
            self._under_way.clear()
        return self.grads

    def _add_up(self, stretch: slice) -> None:
        if stretch.start < stretch.stop:
            dist.all_reduce(self.flat[stretch])

    def _when_done(self, stretch: slice) -> Callable[..., None]:
        """Forward pre-hook of a layer. A fused one is one step of autograd: with its input's gradient its weights' are there."""

        def send(_: Tensor) -> None:
            work = dist.all_reduce(self.flat[stretch], async_op=True)
            assert work is not None
            self._under_way.append((stretch, work))

        def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
            stream = args[0]
            if self.last and isinstance(stream, tuple) and stream[0].requires_grad:
                stream[0].register_hook(send)

        return before

    def clear(self) -> None:
        self.flat.zero_()


class ShardedGradients:
    """fully_shard adds over ranks during the step's last backward pass.

    `stay`: whether weights, once fetched, stay until then, instead of being fetched twice a micro-batch.
    """

    def __init__(self, model: FSDPModule, params: Sequence[nn.Parameter], copies: int, stay: bool) -> None:
        self.model, self.params, self.copies, self.stay = model, params, copies, stay

    def expect(self, *, last: bool) -> None:
        self.model.set_requires_gradient_sync(last)
        if self.stay:
            self.model.set_reshard_after_forward(False)
            self.model.set_reshard_after_backward(last)

    def reduce(self) -> list[Tensor]:
        return [torch.zeros_like(local(p.detach())) if p.grad is None else local(p.grad) for p in self.params]

    def clear(self) -> None:
        for param in self.params:
            param.grad = None
        if self.stay:
            self.model.set_reshard_after_forward(True)  # an evaluation has no backward pass after which to let go


def _stretch(unit: nn.Module, params: Sequence[nn.Parameter]) -> slice:
    """Where a unit's parameters lie among all, which are laid end to end."""
    ends = list(accumulate(param.numel() for param in params))
    own = {id(param) for param in unit.parameters()}
    places = [index for index, param in enumerate(params) if id(param) in own]
    if not places:
        return slice(0, 0)
    assert places == list(range(places[0], places[-1] + 1)), "a layer's parameters follow each other"
    return slice(ends[places[0]] - params[places[0]].numel(), ends[places[-1]])


class _AddGradient:
    """Post-accumulate hook: add a parameter's gradient to its total and free it."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def __call__(self, param: Tensor) -> None:
        if param.grad is not None:  # else a fused layer has added it already
            self.total.add_(param.grad)
            param.grad = None
