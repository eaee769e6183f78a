"""Host memory between the device and the disk: fp32 masters and Adam state, as a checkpoint holds them.

The same on any number of ranks and however they share the model, which is what makes resuming on others possible.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from talaria.train.distributed.sharding import Layout
from talaria.train.optim.adamw import AdamW, local


class Staging:
    """`tensors`: "param.", "exp_avg." and "exp_avg_sq." + name -> this rank's part, in host memory, reused by every save."""

    def __init__(self, named: list[tuple[str, nn.Parameter]], optimizer: AdamW, layout: Layout, device: torch.device) -> None:
        self.optimizer = optimizer
        self.names = [name for name, _ in named]
        self.params = [param for _, param in named]
        self.mesh = layout.mesh("cpu") if layout.sharded and device.type != "cpu" else None
        self.pinned = device.type == "cuda"
        self._tensors: dict[str, Tensor] = {}

    @property
    def tensors(self) -> dict[str, Tensor]:
        if not self._tensors:
            for name, param, m in zip(self.names, self.params, self.optimizer.exp_avg, strict=True):
                dtype = torch.bfloat16 if param.dtype == m.dtype == torch.bfloat16 else torch.float32
                self._tensors[f"param.{name}"] = self._like(param, dtype)
                self._tensors[f"exp_avg.{name}"] = self._like(param, m.dtype)
                self._tensors[f"exp_avg_sq.{name}"] = self._like(param, m.dtype)
        return self._tensors

    @torch.no_grad()
    def fetch(self) -> None:
        """Device to host."""
        optimizer = self.optimizer
        for index, name in enumerate(self.names):
            parts = (
                ("param", optimizer.master(index)),
                ("exp_avg", optimizer.exp_avg[index]),
                ("exp_avg_sq", optimizer.exp_avg_sq[index]),
            )
            for kind, tensor in parts:
                local(self.tensors[f"{kind}.{name}"]).copy_(tensor, non_blocking=True)
        if self.pinned:
            torch.cuda.current_stream().synchronize()

    @torch.no_grad()
    def push(self) -> None:
        """Host to device."""
        for index, name in enumerate(self.names):
            self.optimizer.set_master(index, local(self.tensors[f"param.{name}"]))
            self.optimizer.exp_avg[index].copy_(local(self.tensors[f"exp_avg.{name}"]))
            self.optimizer.exp_avg_sq[index].copy_(local(self.tensors[f"exp_avg_sq.{name}"]))

    def _like(self, param: nn.Parameter, dtype: torch.dtype) -> Tensor:
        part = torch.empty(local(param.detach()).shape, dtype=dtype, pin_memory=self.pinned)
        if not isinstance(param, DTensor):
            return part
        mesh: DeviceMesh = self.mesh or param.device_mesh
        return DTensor.from_local(part, mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride())
