"""Choose the next token from the logits, each answer by its own settings and its own random numbers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How an answer's tokens are chosen. The defaults are those that evaluation measures a model with."""

    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(self, how: Sampling, choice: int = 0) -> None:
        """`choice`: the number of the answer among those to one request; with a seed, each has random numbers of its own."""
        self.how = how
        self.is_greedy = how.temperature == 0
        self._random = torch.Generator()
        if how.seed is None:
            self._random.seed()
        else:
            digest = hashlib.sha256(f"{how.seed}:{choice}".encode()).digest()
            self._random.manual_seed(int.from_bytes(digest[:8], "big", signed=True))

    def pick(self, logits: Tensor) -> int:
        """logits: float[vocabulary]; the same seed and logits give the same token on every device."""
        if self.is_greedy:
            return int(logits.argmax())
        scores = logits.float().cpu() / self.how.temperature
        if self.how.top_p < 1:
            from transformers import TopPLogitsWarper

            scores = TopPLogitsWarper(self.how.top_p)(None, scores[None])[0]
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))


def pick_all(samplers: list[Sampler], logits: Tensor) -> list[int]:
    """One token a row. logits: float[rows, vocabulary]."""
    best: list[int] = logits.argmax(-1).tolist()
    return [token if sampler.is_greedy else sampler.pick(row) for sampler, row, token in zip(samplers, logits, best, strict=True)]
