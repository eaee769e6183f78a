"""The optimizer of a run, its state on the device or, where the settings say so, in host memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from talaria.base_model.model_size import CHECKPOINT_BYTES, STATE_BYTES
from talaria.common.errors import ConfigError
from talaria.train.checkpoint.host_block import HostBlock, whole_pages
from talaria.train.distributed.gradients import Gradients, ReplicatedGradients
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.sharding import ReplicaLayout, device_memory
from talaria.train.distributed.trained_parameters import TrainedParameters
from talaria.train.distributed.transport import shared_bytes
from talaria.train.kernels import linear
from talaria.train.model.activation_memory import USABLE
from talaria.train.model.causal_lm import CausalLM
from talaria.train.optim.adamw import AdamW, AdamWSettings
from talaria.train.optim.offload import OffloadedAdamW

if TYPE_CHECKING:
    from talaria.config.train_settings import Train

_OF_HOST_MEMORY = 0.9
"""Share of a machine's memory that the optimizer's state may take."""
_MOST = 0.3
"""Share of the optimizer's state in host memory beyond which its way there and back cannot be hidden."""
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


def state_away(
    train: Train, model: CausalLM, trained: TrainedParameters, group: ProcessGroup, room: float | None, step_tokens: float
) -> list[int]:
    """Indices of the parameters whose state is to be in host memory under train.offload: auto; none where that gains nothing.

    With fp8, micro-batches that are too small for gradients of weights in 8 bits are worth some of it: as much as is missing.
    room: bytes for activations (None: they are not counted); step_tokens: what a rank has in a step, which is cut evenly.
    """
    if train.offload != "auto" or train.precision != "mixed" or not model.fp8 or room is None or step_tokens < 2 * linear.MANY:
        return []
    # As so many tokens or fewer go into a micro-batch, and all of a step's have as many, none has fewer than MANY.
    tokens = linear.MANY * step_tokens / (step_tokens - linear.MANY)
    missing = model.activations.bytes_without_recomputation(math.ceil(tokens)) - room
    sizes = [span.count for span in trained.spans]
    away = []
    for index, size in enumerate(sizes):
        if missing <= 0:
            break
        away.append(index)
        missing -= size * STATE_BYTES[train.precision][1]  # as `bytes_away` counts
    here = sum(sizes[index] for index in away)
    on_host = CHECKPOINT_BYTES[train.precision] * (sum(sizes) + here) * group.local_size
    fits = on_host <= _OF_HOST_MEMORY * device_memory(torch.device("cpu"))
    return away if here <= _MOST * sum(sizes) and fits else []


def bytes_away(train: Train, trained: TrainedParameters, away: Sequence[int]) -> int:
    """Return what these parameters' state would take on the device."""
    return STATE_BYTES[train.precision][1] * sum(trained.spans[index].count for index in away)


def make_optimizer(
    train: Train, trained: TrainedParameters, memory: int, away: Sequence[int] = (), host: Sequence[Sequence[Tensor]] = ()
) -> AdamW:
    """away: indices of parameters whose state is in host memory, where not all of it is; host: `lock_host_memory` for them."""
    params = [param for _, param in trained.named]
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    how: dict[str, Any] = {"spans": trained.spans, "groups": trained.groups, "updated": trained.updated}
    if train.offload != "optimizer" and not away:
        return AdamW(params, trained.low_bits, _adamw_settings(train), dtype, owned=trained.owned, **how)
    device = params[0].device

    def room() -> int:
        taken = torch.cuda.memory_allocated(device) + shared_bytes() if device.type == "cuda" else int(_FILLED * memory)
        return int(_FILLED * memory) - taken

    how |= {"device_room": room, "away": away or None}
    optimizer = OffloadedAdamW(params, trained.low_bits, _adamw_settings(train), dtype, **how)
    if away:
        optimizer.adopt(*host)
    return optimizer


def lock_host_memory(counts: Sequence[int], group: ProcessGroup) -> list[list[Tensor]] | None:
    """Page-locked fp32 for masters and both moments of parameters of so many elements; None where any rank is refused it.

    Collective. State in memory that is not locked would be moved slowly, while nothing else runs.
    """
    sizes = [whole_pages(4 * count) for _ in range(3) for count in counts]
    starts = list(accumulate(sizes, initial=0))
    block = HostBlock(starts[-1], folder=None, name="away", device=group.device, starts=starts[:-1])
    if counts:
        block.lock()
        block.ready()
    if any(group.gather(block.refused)):
        return None
    views = [block.view(start, count, torch.float32) for start, count in zip(starts, [*counts] * 3, strict=False)]
    return [views[kind * len(counts) : (kind + 1) * len(counts)] for kind in range(3)]


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
