"""What lies on a rank of a model's trained parameters, however they are shared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from talaria.train.distributed.gradients import Gradients
from talaria.train.distributed.weight_gather import WeightGather
from talaria.train.optim.span import ParamSpan


@dataclass(frozen=True)
class TrainedParameters:
    """What the optimiser works on: every trained parameter, by name, and its gradients."""

    named: list[tuple[str, nn.Parameter]]
    low_bits: list[Tensor | None]
    """Per parameter: the 16 bits that its bf16 form lacks of the fp32 master, or None where the parameter is the master."""
    spans: list[ParamSpan]
    """Per parameter: the stretch that this rank updates."""
    gradients: Gradients
    state: int
    """Bytes of weights, gradients and optimiser state that this rank holds in the midst of a step."""
    transient: int = 0
    """How many of them are allocated only inside a step."""
    gather: WeightGather | None = None
    """Of ranks that update parts and exchange them: replicated ones, and those with a ring."""
    groups: Sequence[Sequence[int]] = ()
    """Indices of the parameters that are updated, and exchanged, together."""
    owned: Mapping[int, Tensor] = field(default_factory=dict)
    """By index: this rank's stretch, where it is no part of the parameter's own memory."""

    def updated(self, indices: Sequence[int]) -> None:
        """This rank's stretches of weights are new."""
        if self.gather:
            self.gather.send(indices)

    def whole(self, index: int, part: Tensor) -> Tensor:
        """Return the whole of which each rank has the stretch that it updates, in the parameter's shape. Collective."""
        param = self.named[index][1]
        if isinstance(param, DTensor):
            rows = part.view(-1, *param.shape[1:])
            placed = DTensor.from_local(
                rows, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
            )
            whole: Tensor = placed.full_tensor()
            return whole
        return (self.gather.whole(index, part) if self.gather else part).view(param.shape)
