"""Whether ranks that should hold the same weights do: a flipped bit is found before an update is built on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_LIMBS = (0, 16, 32, 48)


class ReplicasDiffer(RuntimeError):
    """Ranks hold different weights: a fault of a device's memory or of a link. Raised on every rank, before the update."""

    def __init__(self, step: int, digests: Sequence[int]) -> None:
        common = max(digests, key=digests.count)
        odd = [rank for rank, digest in enumerate(digests) if digest != common]
        named = f"rank {odd[0]}" if len(odd) == 1 and len(digests) > 2 else f"ranks {', '.join(map(str, range(len(digests))))}"
        what = "differ from the others'" if len(digests) > 2 else "differ from each other"
        super().__init__(f"step {step}: the weights of {named} {what}: a fault of a device's memory or of a link")


@torch.no_grad()
def weights_digest(params: Sequence[Tensor]) -> int:
    """Return 64 bits that any single flipped bit changes: sums of the weights' bits modulo 2^64, at a pass over memory."""
    sums = torch.stack([_bits(param.detach()).sum(dtype=torch.int64) for param in params])
    factors = torch.arange(1, 2 * len(params), 2, dtype=torch.int64, device=sums.device)  # odd: no bit of a sum is lost
    return int((sums * factors).sum()) & _MASK


def for_sum(digest: int) -> list[float]:
    """Return what ranks add up to learn whether their digests are equal: 16 bits at a time and their squares, exact in fp64."""
    limbs = [float(digest >> shift & 0xFFFF) for shift in _LIMBS]
    return [*limbs, *(limb * limb for limb in limbs)]


def all_equal(sums: Sequence[float], ranks: int) -> bool:
    """Return whether `ranks` numbers are equal: n * sum(x^2) = sum(x)^2 holds for equal ones alone (Cauchy-Schwarz)."""
    limbs, squares = sums[: len(_LIMBS)], sums[len(_LIMBS) :]
    return all(ranks * square == limb * limb for limb, square in zip(limbs, squares, strict=True))


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.view(-1)
    wide = torch.int64 if flat.nbytes % 8 == 0 and flat.data_ptr() % 8 == 0 else torch.int16
    return flat.view(wide)
