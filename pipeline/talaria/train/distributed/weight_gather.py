"""Weights that replicated ranks update in parts and then gather: beside the rest of the update and the next forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from talaria.train.distributed.process_group import all_gather
from talaria.train.optim.span import ParamSpan


class WeightGather:
    """`units`: modules whose weights are waited for when they run; what is in none of them is waited for when `model` runs."""

    def __init__(
        self, model: nn.Module, units: Sequence[nn.Module], params: Sequence[nn.Parameter], spans: Sequence[ParamSpan]
    ) -> None:
        self.params, self.spans = params, spans
        self._under_way: dict[int, dist.Work] = {}
        places = {id(param): index for index, param in enumerate(params)}
        left = set(range(len(params)))
        for unit in units:
            own = [places[id(param)] for param in unit.parameters() if id(param) in places]
            left -= set(own)
            unit.register_forward_pre_hook(self._before(own))
        model.register_forward_pre_hook(self._before(sorted(left)))

    def send(self, index: int) -> None:
        """This rank's stretch of a parameter is new: begin to hand it to the others, and to receive theirs."""
        span = self.spans[index]
        if span.partial:
            whole = self.params[index].detach().view(-1)
            self._under_way[index] = all_gather(whole, whole[span.start : span.stop], async_op=True)

    def wait(self, indices: Sequence[int] | None = None) -> None:
        """Let nothing that follows on the device read these weights (absent: any) before they are whole."""
        for index in list(self._under_way) if indices is None else indices:
            if work := self._under_way.pop(index, None):
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
