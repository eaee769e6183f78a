"""The optimizer of a run, its state on the device or, where the settings say so, in host memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from talaria.base_model.model_size import CHECKPOINT_BYTES
from talaria.common.errors import ConfigError
from talaria.train.distributed.gradients import Gradients, ReplicatedGradients
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.sharding import ReplicaLayout, device_memory
from talaria.train.distributed.trained_parameters import TrainedParameters
from talaria.train.model.activation_memory import USABLE
from talaria.train.optim.adamw import AdamW, AdamWSettings
from talaria.train.optim.offload import OffloadedAdamW

if TYPE_CHECKING:
    from talaria.config.train_settings import Train

_OF_HOST_MEMORY = 0.9
"""Share of a machine's memory that the optimizer's state may take."""
_FILLED = USABLE - 0.03
"""Share of a GPU's memory that state passing through it fills: layers run beside it, and take more than what they save."""


def require_offloadable(model: nn.Module, train: Train, layout: ReplicaLayout, group: ProcessGroup) -> None:
    """Raise ConfigError where the state has no room in host memory, or the rest none on a device."""
    if layout.sharded:
        raise ConfigError(
            "train.offload: optimizer keeps whole weights and gradients on each GPU, but this model's do not fit; leave it off."
        )
    parameters = sum(param.numel() for param in model.parameters() if param.requires_grad)
    wanted = parameters * CHECKPOINT_BYTES[train.precision] * group.local_size / group.size
    memory = device_memory(torch.device("cpu"))
    if wanted > _OF_HOST_MEMORY * memory:
        raise ConfigError(
            f"train.offload: the optimizer's state takes {wanted / 1e9:.0f} of this machine's {memory / 1e9:.0f} GB of memory; "
            "use a machine with more of it, or leave it off."
        )


def make_optimizer(train: Train, trained: TrainedParameters, memory: int) -> AdamW:
    params = [param for _, param in trained.named]
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    how: dict[str, Any] = {"spans": trained.spans, "groups": trained.groups, "updated": trained.updated}
    if train.offload == "none":
        return AdamW(params, trained.low_bits, _adamw_settings(train), dtype, owned=trained.owned, **how)
    device = params[0].device

    def room() -> int:
        return int(_FILLED * memory) - torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    return OffloadedAdamW(params, trained.low_bits, _adamw_settings(train), dtype, device_room=room, **how)


def _adamw_settings(train: Train) -> AdamWSettings:
    return AdamWSettings(train.beta1, train.beta2, train.eps, train.weight_decay)


def stream_beside_layers(units: Sequence[nn.Module], optimizer: AdamW, gradients: Gradients, fence: Callable[[], None]) -> None:
    """Let an offloaded optimizer use the memory that layers (`units`) free in the last backward pass of a step.

    It gives the memory back layer by layer in the next forward pass. `fence`: called before host memory is read.
    """
    if not (isinstance(optimizer, OffloadedAdamW) and isinstance(gradients, ReplicatedGradients)):
        return

    def fetch(_: Tensor) -> None:
        fence()
        optimizer.prefetch()

    def hook(place: int) -> Callable[..., None]:
        def before(layer: nn.Module, args: tuple[Any, ...]) -> None:
            optimizer.release(len(units) - place)
            x = args[0][0] if isinstance(args[0], tuple) else args[0]
            if gradients.last and x.requires_grad:
                x.register_hook(fetch)

        return before

    for place, unit in enumerate(units):
        unit.register_forward_pre_hook(hook(place))
