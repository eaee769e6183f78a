"""How many ranks will train, on which devices, and whether the model's state can fit on them at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.base_model.model_size import ModelSize
from talaria.common.errors import UserError
from talaria.config.schema import Config
from talaria.launch.accelerate_command import Machine, command, gpu_count


@dataclass(frozen=True)
class Place:
    """Where a run trains. Numbers are None where that is not this machine's to know."""

    ranks: int | None = None
    gpus: int | None = None
    """Of this machine."""
    device_bytes: int | None = None
    """Memory of its smallest GPU."""


NOWHERE = Place()


def place(config: Config, trains_here: bool) -> Place:
    """Raises UserError for ranks that cannot start."""
    train = config.train
    if not trains_here and train.num_machines > 1:
        raise UserError(
            f"train.num_machines is {train.num_machines}, but such a run trains on one machine; "
            "docs/operators.md says how several do."
        )
    if not trains_here:
        return Place(train.num_processes or None)
    gpus = gpu_count()
    anywhere = Path("/")
    command(train, anywhere, anywhere, anywhere, Machine(), gpus=gpus)  # refuses what this machine cannot start
    return Place((train.num_processes or max(gpus, 1)) * train.num_machines, gpus, _smallest_gpu(train.num_processes))


def memory(config: Config, size: ModelSize | None, where: Place) -> dict[str, Any]:
    """Return the bytes that each rank holds beside activations, at the least, and what there is for them."""
    state = round(size.state_bytes(config.train, where.ranks)) if size and where.ranks else None
    return {"state_bytes": state, "device_bytes": where.device_bytes, "ranks": where.ranks}


def require_memory(config: Config, found: Mapping[str, Any]) -> None:
    """Raise UserError where not even the sharded state fits on the devices."""
    state, device = found["state_bytes"], found["device_bytes"]
    if state and device and state > device:
        raise UserError(
            f"{config.base.origin}: weights, gradients and optimiser state take {state / 1e9:.1f} GB on each of {found['ranks']} "
            f"ranks under train.precision {config.train.precision}, but a GPU here has {device / 1e9:.1f} GB; train on more "
            "GPUs, set train.offload to optimizer or train.precision to bf16, or train adapters (train.lora.rank)."
        )


def _smallest_gpu(ranks: int) -> int | None:
    from talaria.tracking.system_metrics import find_gpus

    gpus = find_gpus(ranks)
    return min(int(reading.memory_total) for reading in gpus.read()) if gpus else None
