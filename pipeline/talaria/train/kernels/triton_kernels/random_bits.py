"""Random bits that are a hash."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def random_bits(place, salt):
    """16 random bits, int32, for each place; see kernels/random_bits.py."""
    bits = place.to(tl.uint32) * 747796405 + salt.to(tl.uint32)
    bits = (bits ^ (bits >> 16)) * 0x45D9F3B
    bits = (bits ^ (bits >> 16)) * 0x45D9F3B
    return ((bits ^ (bits >> 16)) & 0xFFFF).to(tl.int32)
