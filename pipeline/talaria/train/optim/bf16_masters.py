"""Store fp32 values as bf16 weights: an exact master in two halves, or stochastic rounding."""

from __future__ import annotations

import torch
from torch import Tensor


def round_stochastically(master: Tensor, salt: int, start: int = 0) -> Tensor:
    """Round fp32 to bf16, up or down with the odds that make the mean exact, so that tiny updates are not lost.

    The random bits are a hash of (salt, place), the same whenever and wherever the step is made.
    """
    bits = torch.arange(start, start + master.numel(), device=master.device).view(master.shape)
    bits = (bits * 747796405 + salt) & 0xFFFFFFFF
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    bits = (bits ^ (bits >> 16)) & 0xFFFF
    return ((master.view(torch.int32) + bits.int()) >> 16).to(torch.int16).view(torch.bfloat16)


def split_halves(master: Tensor) -> tuple[Tensor, Tensor]:
    """Split fp32 into bf16 (rounded to nearest, ties away from zero) and the int16 difference of the bit patterns; exact."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join_halves(high: Tensor, low: Tensor) -> Tensor:
    """Return the fp32 values that `split_halves` took apart."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)
