"""The ranks that train together: who they are and what they tell each other outside of the model's own communication."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from talaria.common.errors import ConfigError

_FREE = 0.9
"""Share of a GPU's memory that is free where nobody but this process uses it."""
_PATIENCE = 5.0
"""Seconds in which nothing becomes free, after which a rank goes on with what there is."""

# torch 2.13 renamed them; 2.11, which is supported too, has the former names alone.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@dataclass(frozen=True)
class ProcessGroup:
    rank: int
    size: int
    local_rank: int
    local_size: int
    """Ranks on this machine."""
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, rank 0, which writes what only one may write."""
        return self.rank == 0

    def sum(self, values: Sequence[float | Tensor]) -> list[float]:
        """Sums over ranks, in float64: the same on each, bit for bit. Tensors of the device are waited for only once."""
        if self.size == 1 and not any(isinstance(value, Tensor) for value in values):  # nor a wait for the device
            return [float(value) for value in values]
        known = torch.tensor([0.0 if isinstance(value, Tensor) else value for value in values], dtype=torch.float64)
        total = known.to(self.device, non_blocking=True)
        for place, value in enumerate(values):
            if isinstance(value, Tensor):
                total[place] = value
        if self.size > 1:  # else no memory for NCCL
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in order of rank. Pickles: for values of our own making only."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def reduce_scatter_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """Begin to add up each (whole, this rank's stretch of it) over ranks, in one go; returns what to `wait` for."""
    with _together() as work:
        for whole, part in pairs:
            _reduce_scatter(part, whole, async_op=True)
    return work


def all_gather_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> Any:
    """Begin to gather each (whole, this rank's stretch of it) from all ranks, in one go; returns what to `wait` for."""
    with _together() as work:
        for whole, part in pairs:
            all_gather(whole, part, async_op=True)
    return work


def _together() -> Any:
    """PyTorch's way to start many collectives as one, which is not public: of 250 a step, each takes the host 50 us to start."""
    return dist.distributed_c10d._coalescing_manager(async_ops=True)


def join(timeout_seconds: float, *, takes_over: bool = False) -> ProcessGroup:
    """Join the ranks that `accelerate launch` (or torchrun) started, or stand alone where nothing did.

    takes_over: from ranks that have just died, whose memory a GPU may not have back yet.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", rank)), int(os.environ.get("LOCAL_WORLD_SIZE", size))
    device = choose_device(local_rank)
    if takes_over and device.type == "cuda":
        _await_memory(device)
    # Checkpoints are written from host memory, so CPU tensors need a backend on a GPU machine too.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    bound = device if device.type == "cuda" and size > 1 else None
    if size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout, device_id=bound)  # type: ignore[attr-defined]
    else:
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout, device_id=bound)
    group = ProcessGroup(rank, size, local_rank, local_size, device)
    if device.type == "cuda":
        _use_libraries(group)
    return group


def _await_memory(device: torch.device) -> None:
    """Wait until a GPU's memory is free, or has not become freer for a while: others may use it too."""
    most, since = 0, time.monotonic()
    while time.monotonic() - since < _PATIENCE:
        free, total = torch.cuda.mem_get_info(device)
        if free > _FREE * total:
            return
        if free > most:
            most, since = free, time.monotonic()
        time.sleep(0.02)


def _use_libraries(group: ProcessGroup) -> None:
    """Have cuBLAS and NCCL do what they do at their first use: a rank's imports, which run beside this, take longer."""
    part = torch.zeros(256, 256, dtype=torch.bfloat16, device=group.device)
    torch.mm(part, part)
    if group.size > 1:
        whole = part.new_zeros(group.size * 256, 256)
        dist.all_reduce(part)
        _reduce_scatter(part, whole)
        all_gather(whole, part)
    torch.cuda.synchronize(group.device)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def choose_device(local_rank: int) -> torch.device:
    """This rank's GPU, or the CPU where there is none or ACCELERATE_USE_CPU says so."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"train.num_processes: rank {local_rank} of this machine has no GPU of its own; "
            f"{torch.cuda.device_count()} are visible."
        )
    # Before CUDA starts: memory that a micro-batch of one size has freed can then serve one of another.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    device = torch.device("cuda", local_rank)
    use(device)
    return device


def use(device: torch.device) -> None:
    """Make a GPU the current one of this thread; each has its own, at first GPU 0, of whose memory it would take some."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def require_size(group: ProcessGroup, processes: int, machines: int) -> None:
    """A launcher that silently started fewer ranks than asked would train, slowly, on a part of the machine."""
    if processes and group.size != processes * machines:
        raise ConfigError(
            f"train.num_processes {processes} x train.num_machines {machines} asks for {processes * machines} ranks, "
            f"but {group.size} started."
        )
