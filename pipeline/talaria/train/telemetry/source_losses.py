"""The training loss of each source of a mixture: the parts of which a step's loss is the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from talaria.train.batching.plan import Ints

if TYPE_CHECKING:
    from talaria.tokenization.dataset import Tokens


@dataclass(frozen=True)
class Sources:
    """Which conversation comes from which of several sources."""

    names: list[str]
    of_conversation: Ints
    """int64[n]: index of a name."""
    shares: Ints
    """int64[n]: what a conversation counts in the mean, its targets or, where conversations weigh alike, 1 if it has any."""

    @classmethod
    def of(cls, tokens: Tokens, *, per_sample: bool) -> Sources | None:
        """Return None for data of a single source."""
        if tokens.layout is None or len(parts := list(tokens.layout.by_source(tokens.rows))) < 2:
            return None
        owner = np.empty(len(tokens), np.int64)
        for index, (_, places) in enumerate(parts):
            owner[places] = index
        shares = (tokens.targets > 0 if per_sample else tokens.targets).astype(np.int64)
        return cls([name for name, _ in parts], owner, shares)

    def sums(self, losses: Tensor, sources: Tensor) -> Tensor:
        """float64[names]: sums of `losses` (fp32[S]) by source (int64[S]), in an order that is always the same."""
        exact = losses.double()
        return torch.stack([torch.where(sources == index, exact, 0.0).sum() for index in range(len(self.names))])

    def means(self, parts: Sequence[float], indices: Ints) -> dict[str, float]:
        """Mean loss of each source that has a target among a step's conversations.

        parts: sums of losses divided by what the whole step counts.
        """
        counts = np.bincount(self.of_conversation[indices], weights=self.shares[indices], minlength=len(self.names))
        named = zip(self.names, parts, counts.tolist(), strict=True)
        return {name: part * counts.sum() / count for name, part, count in named if count}
