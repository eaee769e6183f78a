"""Store fp32 values as bf16 weights: an exact master in two halves, or stochastic rounding."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from talaria.train.kernels.random_bits import random_bits

_AT_ONCE = 1 << 24
"""Elements for which random bits, 8 bytes each, exist at a time."""


def round_stochastically(master: Tensor, salt: int, start: int = 0) -> Tensor:
    """Round fp32 to bf16, up or down with the odds that make the mean exact, so that tiny updates are not lost.

    The random bits are a hash of (salt, place), the same whenever and wherever the step is made.
    """
    bits = random_bits(start, master.numel(), salt, master.device).view(master.shape)
    return ((master.view(torch.int32) + bits.int()) >> 16).to(torch.int16).view(torch.bfloat16)


@torch.no_grad()
def spread_masters(named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Move bf16 numbers, stored as fp32, to random places of the intervals that round to them; zeros stay. In place.

    Products see a master rounded to bf16. If every master began in the middle of its interval, small updates would change none of
    these for many steps, and then most of them at once. Spread evenly, as many change as the updates are long, so that the mean
    of every update is seen at once. The places are a hash of (name, place in the parameter): the same in every run and on any
    number of ranks.
    """
    for name, param in named:
        values, salt = param.detach().view(-1), zlib.crc32(name.encode())
        for start in range(0, len(values), _AT_ONCE):
            piece = values[start : start + _AT_ONCE].view(torch.int32)
            # Neither end of the interval, which some round to the neighbour.
            away = (random_bits(start, len(piece), salt, piece.device).int() - 0x8000).clamp_(min=-0x7FFF)
            piece += torch.where((piece & 0x7FFFFFFF) == 0, 0, away)


def split_halves(master: Tensor) -> tuple[Tensor, Tensor]:
    """Split fp32 into bf16 (rounded to nearest, ties away from zero) and the int16 difference of the bit patterns; exact."""
    bits = master.view(torch.int32)
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def join_halves(high: Tensor, low: Tensor) -> Tensor:
    """Return the fp32 values that `split_halves` took apart."""
    return ((high.view(torch.int16).to(torch.int32) << 16) + low.to(torch.int32)).view(torch.float32)
