"""Random bits that are a hash of where and when they are used, so that whoever makes a step draws the same ones."""

from __future__ import annotations

import torch
from torch import Tensor

_SALT = 0x7FFFFFFF


def random_bits(start: int, count: int, salt: int, device: torch.device) -> Tensor:
    """Return int64[count], 16 random bits each: a hash of (salt, place from `start` on)."""
    bits = torch.arange(start, start + count, device=device)
    bits = (bits * 747796405 + salt) & 0xFFFFFFFF
    for _ in range(2):
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return (bits ^ (bits >> 16)) & 0xFFFF


def salt_of(*numbers: int) -> int:
    """Return 31 bits that these numbers, in this order, make their own."""
    salt = 0
    for number in numbers:
        salt = (salt ^ number) * 0x9E3779B1 & _SALT
        salt ^= salt >> 15
    return salt
