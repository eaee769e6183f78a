"""Dropout before LoRA's adapters that does not depend on how a step's work is divided.

torch's own draws from the process's generator, so that ranks and micro-batches decide what is dropped. Here a hash decides: of
the seed, the step, the conversation's row, the token's position, the module's name and the feature. A step drops the same on any
number of ranks, in any micro-batch, when its activations are recomputed, and after a resume.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from talaria.train.batching.packing import MicroBatch


class TokenKeys:
    """A number for each token of the micro-batch that runs, which all dropout modules of a model share."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.value = torch.empty(0, dtype=torch.int32)
        """int32[T]"""

    def set(self, batch: MicroBatch, step: int) -> None:
        rows = torch.from_numpy(_row_keys(self.seed, step, batch.rows)).to(batch.input_ids.device)
        of_token = torch.repeat_interleave(rows, batch.cu_seqlens.diff(), output_size=len(batch.input_ids))
        self.value = mix_(of_token ^ mix_(batch.position_ids.int()))


class AdapterDropout(nn.Module):
    """Takes the place of nn.Dropout in peft's wrapper around the linear layer `name`."""

    def __init__(self, p: float, name: str, keys: TokenKeys) -> None:
        super().__init__()
        self.p, self.keys = p, keys
        self._name_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little", signed=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., T, K], one micro-batch's tokens."""
        if not self.training:
            return x
        assert x.shape[-2] == len(self.keys.value), "an adapter should see every token of a micro-batch"
        drawn = mix_(self.keys.value[:, None] + self._feature_keys(x.shape[-1], x.device))  # uniform in [-2^31, 2^31)
        return x.masked_fill(drawn < int(self.p * 2**32) - 2**31, 0.0) / (1.0 - self.p)

    def _feature_keys(self, count: int, device: torch.device) -> Tensor:
        return mix_(mix_(torch.arange(count, dtype=torch.int32, device=device)) ^ self._name_key)


def install(model: nn.Module, p: float, seed: int) -> None:
    """Replace the dropout of every adapter of a peft model."""
    keys = TokenKeys(seed)
    for name, module in model.named_modules():
        dropouts: Any = getattr(module, "lora_dropout", {})
        for adapter in dropouts:
            dropouts[adapter] = AdapterDropout(p, name, keys)


def token_keys(model: nn.Module) -> TokenKeys | None:
    """Return what the model's dropout modules share; None without dropout."""
    return next((module.keys for module in model.modules() if isinstance(module, AdapterDropout)), None)


def mix_(x: Tensor) -> Tensor:
    """Hash int32 numbers in place, one to one (lowbias32 of Wellons' hash-prospector); products wrap around."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32), (16, None)):
        x.bitwise_xor_((x >> shift).bitwise_and_(2 ** (32 - shift) - 1))  # a shift of unsigned numbers
        if factor is not None:
            x.mul_(factor)
    return x


def _row_keys(seed: int, step: int, rows: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """int32[n]; splitmix64 of rows, begun at a digest of (seed, step)."""
    begin = np.frombuffer(hashlib.sha256(f"{seed}:{step}".encode()).digest()[:8], dtype=np.uint64)
    x = rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + begin
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(32)).astype(np.uint32).view(np.int32)
