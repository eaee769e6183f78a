"""A step's gradients: summed over micro-batches, then over ranks.

Replicated ranks hold every weight and gradient but share the optimiser: of each gradient's sum a rank receives the stretch that
it updates (ZeRO's first stage: Rajbhandari et al., 2020), layer by layer beside the step's last backward pass; for sharded ranks
fully_shard does it, in each micro-batch. All add up, and none averages: the loss is divided by the global count of targets
beforehand, and so a sum over ranks is the gradient, however the batch was split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.transport import Transport
from talaria.train.kernels.matmul import RunningTotal, accumulate_into
from talaria.train.optim.adamw import local
from talaria.train.optim.span import ParamSpan


class Gradients(Protocol):
    def expect(self, *, last: bool) -> None:
        """Say whether the next backward pass is the step's last."""

    def reduce(self) -> list[Tensor]:
        """Finish the step's sums over micro-batches and ranks; return this rank's part of each gradient."""

    def squared_norm(self, parts: Sequence[Tensor]) -> Tensor:
        """Return this rank's share, float64[], of the squared norm of all gradients: over ranks, the shares add up to it."""

    def clear(self) -> None:
        """Forget the gradients."""


class ReplicatedGradients:
    """Gradients of a whole model, accumulated in one flat buffer; `spans`: the stretch of each that this rank updates.

    Fused layers add to it inside their products, and in a step's last backward pass a layer's stretches set off at once. What
    autograd gives for bf16 parameters under mixed precision is added, in fp32, and dropped at once. Parameters that every rank
    updates whole (norms, biases) lie at the buffer's end and are added up in one call. `groups`: the indices of each unit's
    parameters, and of those outside of all.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        groups: Sequence[Sequence[int]],
        params: Sequence[nn.Parameter],
        spans: Sequence[ParamSpan],
        dtype: torch.dtype,
        group: ProcessGroup,
        transport: Transport,
    ) -> None:
        self.group, self.spans, self.transport = group, spans, transport
        self.last = False
        self._shared = [[index for index in own if spans[index].partial] for own in groups]
        self._under_way: dict[int, Any] = {}
        # What autograd adds to must be zero beforehand; the rest, nearly all under mixed precision, is written over instead.
        forgets = [param.dtype != dtype and param.ndim >= 2 for param in params]
        # Stable, so that layers stay together; vectors last, so that matrices multiplied as one have their totals side by side.
        order = sorted(range(len(params)), key=lambda i: (not spans[i].partial, not forgets[i], params[i].ndim < 2))
        self.flat = transport.shared(sum(param.numel() for param in params), dtype)
        pieces = self.flat.split([params[index].numel() for index in order])  # type: ignore[no-untyped-call]
        self._sums: list[Tensor] = [piece for _, piece in sorted(zip(order, pieces, strict=True), key=lambda pair: pair[0])]
        self._small = self.flat[sum(span.whole for span in spans if span.partial) :]
        self._zeroed = self.flat[sum(param.numel() for param, forget in zip(params, forgets, strict=True) if forget) :]
        self._totals: list[RunningTotal] = []
        for param, total in zip(params, self._sums, strict=True):
            running = accumulate_into(param, total.view_as(param))
            self._totals.append(running)
            if param.dtype == dtype:
                param.grad = running.tensor  # autograd adds to it as it is
            else:
                param.register_post_accumulate_grad_hook(_AddGradient(running))  # type: ignore[no-untyped-call]
        self._forgotten = [total for total, forget in zip(self._totals, forgets, strict=True) if forget]
        if group.size > 1:
            for number, unit in enumerate(units):
                unit.register_forward_pre_hook(self._when_done(number))

    def expect(self, *, last: bool) -> None:
        self.last = last

    def reduce(self) -> list[Tensor]:
        for total in self._forgotten:
            total.settled()
        if self.group.size > 1:
            for number in range(len(self._shared)):
                if number not in self._under_way:
                    self._send(number)
            if len(self._small):
                dist.all_reduce(self._small)
            for work in self._under_way.values():
                work.wait()
            self._under_way.clear()
        return [total[span.start : span.stop] for total, span in zip(self._sums, self.spans, strict=True)]

    def squared_norm(self, parts: Sequence[Tensor]) -> Tensor:
        return squared_norm_of(parts, self.spans, self.group.size)

    def _send(self, number: int) -> None:
        for index in self._shared[number]:
            self._totals[index].settled()
        sums = [(self._sums[index], self.spans[index]) for index in self._shared[number]]
        if sums:  # in place: a rank's stretch of the sum takes the place of its own addend
            pairs = ((total, total[span.start : span.stop]) for total, span in sums)
            self._under_way[number] = self.transport.scatter(pairs, add=False)

    def _when_done(self, number: int) -> Callable[..., None]:
        """Forward pre-hook of a layer. A fused one is one step of autograd: with its input's gradient its weights' are there."""

        def send(_: Tensor) -> None:
            self._send(number)

        def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
            stream = args[0]
            if self.last and isinstance(stream, tuple) and stream[0].requires_grad:
                stream[0].register_hook(send)

        return before

    def clear(self) -> None:
        self._zeroed.zero_()
        for total in self._forgotten:
            total.stale = True


class ShardedGradients:
    """fully_shard adds each micro-batch's gradients up over the ranks of a shard group, layer by layer beside the backward pass,
    so that no rank ever holds all of them whole; over groups it does so in the step's last backward pass.

    `copies`: how many ranks hold the same part.
    """

    def __init__(self, model: FSDPModule, params: Sequence[nn.Parameter], copies: int) -> None:
        self.model, self.params, self.copies = model, params, copies

    def expect(self, *, last: bool) -> None:
        self.model.set_requires_all_reduce(last)

    def reduce(self) -> list[Tensor]:
        return [torch.zeros_like(local(p.detach())) if p.grad is None else local(p.grad) for p in self.params]

    def squared_norm(self, parts: Sequence[Tensor]) -> Tensor:
        return _squared_norm(parts) / self.copies

    def clear(self) -> None:
        for param in self.params:
            param.grad = None


def squared_norm_of(parts: Sequence[Tensor], spans: Sequence[ParamSpan], ranks: int) -> Tensor:
    """Return this rank's share of the squared norm: of its stretches, and an even one of what all ranks have."""
    mine = _squared_norm([part for part, span in zip(parts, spans, strict=True) if span.partial])
    held_by_all = _squared_norm([part for part, span in zip(parts, spans, strict=True) if not span.partial])
    return mine + held_by_all / ranks


def _squared_norm(parts: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.get_total_norm(parts).double() ** 2 if parts else torch.zeros((), dtype=torch.float64)


class _AddGradient:
    """Post-accumulate hook: add a parameter's gradient to its total and free it."""

    def __init__(self, total: RunningTotal) -> None:
        self.total = total

    def __call__(self, param: Tensor) -> None:
        if param.grad is not None:  # else a fused layer has added it already
            self.total.settled().add_(param.grad)
            param.grad = None
