"""Weights that replicated ranks update in parts and then gather: beside the rest of the update and the next forward pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from talaria.train.distributed.process_group import all_gather
from talaria.train.distributed.transport import Transport
from talaria.train.optim.span import ParamSpan

_ALIGNED = 256
"""Elements, of which a multiple precedes each stretch of memory that weights are moved to."""


class WeightGather:
    """`units`: modules whose weights are waited for when they run; `groups`: the indices of each one's parameters, and of those
    outside of all, which are waited for when `model` runs. Moves the weights that are exchanged to other memory. Collective."""

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[nn.Module],
        groups: Sequence[Sequence[int]],
        params: Sequence[nn.Parameter],
        spans: Sequence[ParamSpan],
        transport: Transport,
    ) -> None:
        self.params, self.spans, self.transport = params, spans, transport
        self._under_way: dict[int, Any] = {}
        share(model, [params[index] for own in groups for index in own if spans[index].partial], transport)
        for module, own in zip((*units, model), groups, strict=True):
            module.register_forward_pre_hook(self._before(own))

    def send(self, indices: Sequence[int]) -> None:
        """This rank's stretches of parameters are new: begin to hand them to the others, and to receive theirs."""
        shared = [index for index in indices if self.spans[index].partial]
        if shared:
            weights = [(self.params[index].detach().view(-1), self.spans[index]) for index in shared]
            self.transport.changed()
            work = self.transport.gather((whole, whole[span.start : span.stop]) for whole, span in weights)
            self._under_way |= dict.fromkeys(shared, work)

    def wait(self, indices: Sequence[int] | None = None) -> None:
        """Let nothing that follows on the device read these weights (absent: any) before they are whole."""
        waited = {self._under_way.pop(index, None) for index in (list(self._under_way) if indices is None else indices)}
        for work in waited - {None}:
            work.wait()

    def whole(self, index: int, part: Tensor) -> Tensor:
        """A tensor of which every rank has the stretch that it updates, such as a master. Collective."""
        span = self.spans[index]
        if not span.partial:
            return part
        whole = part.new_empty(span.whole)
        all_gather(whole, part.contiguous())
        return whole

    def _before(self, indices: Sequence[int]) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if self._under_way:
                self.wait(indices)

        return before


@torch.no_grad()
def share(model: nn.Module, exchanged: Collection[nn.Parameter], transport: Transport) -> None:
    """Move weights into memory that `transport` has other ranks read, and with them those of `model` that lie side by side with
    them: they do so afterwards. Collective."""
    wanted = {id(param) for param in exchanged}
    runs: list[list[nn.Parameter]] = []
    for param in sorted(model.parameters(), key=Tensor.data_ptr):
        if runs and _follows(runs[-1][-1], param):
            runs[-1].append(param)
        else:
            runs.append([param])
    number = {id(param): place for place, param in enumerate(model.parameters())}
    runs.sort(key=lambda run: number[id(run[0])])  # addresses differ from rank to rank
    moved = [run for run in runs if not wanted.isdisjoint(map(id, run))]
    for dtype in sorted({run[0].dtype for run in moved}, key=str):
        alike = [run for run in moved if run[0].dtype == dtype]
        sizes = [-(-sum(param.numel() for param in run) // _ALIGNED) * _ALIGNED for run in alike]
        block = transport.shared(sum(sizes), dtype)
        for run, start in zip(alike, accumulate(sizes, initial=0), strict=False):
            ends = accumulate((param.numel() for param in run), initial=start)
            for param, begin in zip(run, ends, strict=False):
                param.data = block[begin : begin + param.numel()].view_as(param).copy_(param)


def _follows(one: Tensor, other: Tensor) -> bool:
    """Whether it lies behind the other in the same memory, and is of the same kind."""
    alike = one.dtype == other.dtype and one.is_contiguous() and other.is_contiguous()
    same = one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    return alike and same and one.data_ptr() + one.nbytes == other.data_ptr()
