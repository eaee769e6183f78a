"""Sharded layers: each rank keeps its stretches of their weights and gradients, and two layers at a time are whole.

Layers of the same shape share two places in memory. While one is computed, the next one's weights are gathered into the other
place, forward and backward, and the sums of the gradients before it are scattered (ZeRO's third stage: Rajbhandari et al., 2020).
Parameters are views of these places, so nothing is allocated, copied or bound anew in a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from talaria.train.distributed.gradients import ReplicatedGradients, squared_norm_of
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.trained_parameters import TrainedParameters
from talaria.train.distributed.transport import Transport
from talaria.train.distributed.weight_gather import WeightGather
from talaria.train.kernels.matmul import RunningTotal, accumulate_into
from talaria.train.optim.span import ParamSpan

_PLACES = 2


def parameters_in_a_ring(
    model: nn.Module,
    units: Sequence[nn.Module],
    groups: Sequence[Sequence[int]],
    named: list[tuple[str, nn.Parameter]],
    spans: list[ParamSpan],
    low_bits: list[Tensor | None],
    dtype: torch.dtype,
    group: ProcessGroup,
    transport: Transport,
    bytes_each: tuple[int, int],
) -> TrainedParameters:
    """Put the matrices of `units`, alike, into a ring, and replicate the rest.

    groups: the indices of each unit's parameters, and of those outside of all; dtype: of sums of gradients; bytes_each: of a
    parameter's weight and gradient, and of its part of the optimiser's state.
    """
    params = [param for _, param in named]
    inside = [[index for index in own if params[index].ndim >= 2] for own in groups[:-1]]
    ring = LayerRing(units, inside, params, spans, dtype, transport)
    rest = [index for index in range(len(params)) if index not in ring.owned]
    replicated = [params[index] for index in rest]
    outside = ReplicatedGradients([], [range(len(rest))], replicated, [spans[index] for index in rest], dtype, group, transport)
    held, shared = bytes_each
    numbers, others = sum(params[index].numel() for index in ring.owned), sum(param.numel() for param in replicated)
    return TrainedParameters(
        named,
        low_bits,
        spans,
        RingGradients(ring, outside, rest, spans, group),
        int((held + shared) * numbers / group.size + (held + shared / group.size) * others) + ring.buffers,
        gather=RingGather(model, ring, rest, params, spans),
        groups=(rest, *inside),
        owned=ring.owned,
    )


class LayerRing:
    """`inside`: per unit, the indices of its matrices among `params`, of which every rank has the stretch that `spans` say.

    Takes the memory of these parameters over. `dtype`: of sums of gradients. Collective.
    """

    def __init__(
        self,
        units: Sequence[nn.Module],
        inside: Sequence[Sequence[int]],
        params: Sequence[nn.Parameter],
        spans: Sequence[ParamSpan],
        dtype: torch.dtype,
        transport: Transport,
    ) -> None:
        self.inside, self.spans, self.transport = inside, spans, transport
        first = params[inside[0][0]]
        sizes = [params[index].numel() for index in inside[0]]
        weights = [torch.zeros(sum(sizes), dtype=first.dtype, device=first.device) for _ in range(_PLACES)]
        sums = [transport.shared(sum(sizes), dtype) for _ in range(_PLACES)]
        counts = [[spans[index].count for index in own] for own in inside]
        stretches = transport.shared(sum(map(sum, counts)), first.dtype).split([count for own in counts for count in own])  # type: ignore[no-untyped-call]
        place_of = dict(zip([index for own in inside for index in own], stretches, strict=True))
        self.owned: dict[int, Tensor] = {}
        """This rank's stretch of each weight."""
        self.gradients: dict[int, Tensor] = {}
        """Likewise, of the sum over ranks and micro-batches."""
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}
        """Weight and sum, flat."""
        self._totals: dict[int, RunningTotal] = {}
        self._held = [-1] * _PLACES
        """Whose weights are in a place, or on their way to it."""
        self._arriving: dict[int, Any] = {}
        self._leaving: dict[int, Any] = {}
        """By place: the work to wait for where sums are on their way out."""
        self._begun: set[int] = set()
        """Layers of which this step has gradients."""
        self._unsent: set[int] = set()
        """Layers whose sums lie in a place: where nothing before the first one is trained, no hook is called after it."""
        for number, (unit, own) in enumerate(zip(units, inside, strict=True)):
            place = number % _PLACES
            pieces = zip(own, weights[place].split(sizes), sums[place].split(sizes), strict=True)  # type: ignore[no-untyped-call]
            for index, weight, total in pieces:
                param, span = params[index], spans[index]
                self.owned[index] = place_of[index].copy_(param.detach().view(-1)[span.start : span.stop])
                self.gradients[index] = torch.zeros(span.count, dtype=dtype, device=first.device)
                self._whole[index] = weight, total
                param.data = weight.view_as(param)
                self._totals[index] = accumulate_into(param, total.view_as(param))
            self._register(number, unit)

    @property
    def buffers(self) -> int:
        """Bytes of the places, and of what arrives from others to be added to one of them."""
        places = [[self._whole[index] for index in own] for own in self.inside[:_PLACES]]
        return sum(weight.nbytes + total.nbytes for place in places for weight, total in place) + self.transport.landing

    def _register(self, number: int, unit: nn.Module) -> None:
        """A fused layer is one step of autograd: the hook of its output is called before it, that of its input after it."""

        def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
            self._use(number, number + 1)
            x = args[0][0]
            if x.requires_grad and torch.is_grad_enabled():
                x.register_hook(lambda _: self._send(number))

        def after(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if output[0].requires_grad:
                output[0].register_hook(lambda _: self._before_backward(number))

        unit.register_forward_pre_hook(before)
        unit.register_forward_hook(after)

    def _use(self, number: int, following: int) -> None:
        """Let what is computed next read a layer's weights, and fetch those of another beside it."""
        for wanted in (number, following):
            if 0 <= wanted < len(self.inside):
                self._fetch(wanted)
        if work := self._arriving.pop(number % _PLACES, None):
            work.wait()

    def _fetch(self, number: int) -> None:
        place = number % _PLACES
        if self._held[place] != number:
            if work := self._arriving.pop(place, None):  # fetched in vain
                work.wait()
            self._held[place] = number
            self._arriving[place] = self.transport.gather((self._whole[i][0], self.owned[i]) for i in self.inside[number])

    def _before_backward(self, number: int) -> None:
        self._use(number, number - 1)
        self._settle(number % _PLACES)
        self._unsent.add(number)
        for index in self.inside[number]:
            self._totals[index].stale = True  # it holds another layer's

    def _send(self, number: int) -> None:
        own = self.inside[number]
        self._unsent.discard(number)
        for index in own:
            self._totals[index].settled()
        adds = number in self._begun
        self._begun.add(number)
        pairs = ((self._whole[index][1], self.gradients[index]) for index in own)
        self._leaving[number % _PLACES] = self.transport.scatter(pairs, add=adds)

    def _settle(self, place: int) -> None:
        """Have done with the sums in a place."""
        for late in [number for number in self._unsent if number % _PLACES == place]:
            self._send(late)
        if work := self._leaving.pop(place, None):
            work.wait()

    def finish(self) -> None:
        """Let what follows read the step's gradients."""
        for place in range(_PLACES):
            self._settle(place)

    def clear(self) -> None:
        """Forget the gradients."""
        self.finish()
        self._begun.clear()

    def forget(self) -> None:
        """The weights are new: what is whole of them is old."""
        for work in self._arriving.values():
            work.wait()
        self._arriving.clear()
        self._held = [-1] * _PLACES
        self.transport.changed()


class RingGradients:
    """Gradients of layers in a ring, and `outside` of them of what ranks replicate (`rest`: its indices among all)."""

    def __init__(
        self, ring: LayerRing, outside: ReplicatedGradients, rest: Sequence[int], spans: Sequence[ParamSpan], group: ProcessGroup
    ) -> None:
        self.ring, self.outside, self.rest, self.spans, self.group = ring, outside, rest, spans, group

    def expect(self, *, last: bool) -> None:
        self.outside.expect(last=last)

    def reduce(self) -> list[Tensor]:
        self.ring.finish()
        parts = self.ring.gradients | dict(zip(self.rest, self.outside.reduce(), strict=True))
        return [parts[index] for index in range(len(parts))]

    def squared_norm(self, parts: Sequence[Tensor]) -> Tensor:
        return squared_norm_of(parts, self.spans, self.group.size)

    def clear(self) -> None:
        self.ring.clear()
        self.outside.clear()


class RingGather(WeightGather):
    """Weights that ranks update in parts: what they replicate is gathered at once, a ring's when it is used."""

    def __init__(
        self, model: nn.Module, ring: LayerRing, rest: Sequence[int], params: Sequence[nn.Parameter], spans: Sequence[ParamSpan]
    ) -> None:
        super().__init__(model, [], [rest], params, spans, ring.transport)
        self.ring = ring

    def send(self, indices: Sequence[int]) -> None:
        super().send([index for index in indices if index not in self.ring.owned])
        if any(index in self.ring.owned for index in indices):
            self.ring.forget()
