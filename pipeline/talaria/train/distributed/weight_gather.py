"""Weights that replicated ranks update in parts and then gather: beside the rest of the update and the next forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from talaria.train.distributed.process_group import all_gather, all_gather_all
from talaria.train.optim.span import ParamSpan


class WeightGather:
    """`units`: modules whose weights are waited for when they run; `groups`: the indices of each one's parameters, and of those
    outside of all, which are waited for when `model` runs."""

    def __init__(
        self,
        model: nn.Module,
        units: Sequence[nn.Module],
        groups: Sequence[Sequence[int]],
        params: Sequence[nn.Parameter],
        spans: Sequence[ParamSpan],
    ) -> None:
        self.params, self.spans = params, spans
        self._under_way: dict[int, Any] = {}
        for module, own in zip((*units, model), groups, strict=True):
            module.register_forward_pre_hook(self._before(own))

    def send(self, indices: Sequence[int]) -> None:
        """This rank's stretches of parameters are new: begin to hand them to the others, and to receive theirs."""
        shared = [index for index in indices if self.spans[index].partial]
        if shared:
            weights = [(self.params[index].detach().view(-1), self.spans[index]) for index in shared]
            work = all_gather_all((whole, whole[span.start : span.stop]) for whole, span in weights)
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
