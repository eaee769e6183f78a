"""The answers that a model writes at the same time, one token each a step; new ones join between two steps.

Rows are padded on the left, so that the next token of every row goes into the same slot. Positions count a row's own tokens, so
padding changes an answer by rounding at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from talaria.serving.decoding.answer_text import AnswerText
from talaria.serving.decoding.kv_cache import empty_cache
from talaria.serving.decoding.sampling import Sampler

STOP, LENGTH, FAILED = "stop", "length", "failed"


class TextPiece(NamedTuple):
    """Text of an answer, as it comes; or the answer's end."""

    text: str
    finish: str | None = None
    """STOP: by an end token or a stop string; LENGTH: cut off; FAILED: the engine could not go on. None: more is to come."""
    tokens: int = 0
    """Tokens of the answer so far, the end token too."""


@dataclass(eq=False)
class Generation:
    """An answer that is asked for, and as far as it has come."""

    prompt: list[int]
    limit: int
    """Most tokens of the answer."""
    sampler: Sampler
    text: AnswerText
    deliver: Callable[[TextPiece], None]
    """Called in the engine's thread with each piece."""
    streamed: bool = True
    """Pieces are wanted as they come; else one at the end."""
    cancelled: bool = False
    """Set by whoever does not want the answer any more."""
    tokens: list[int] = field(default_factory=list)
    _unsent: list[str] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.limit - len(self.tokens)

    def take(self, token: int, ends: frozenset[int]) -> bool:
        """Add a token and deliver what is certain. Returns whether the answer has ended."""
        self.tokens.append(token)
        if token not in ends:
            self._unsent.append(self.text.add(token))
        ended = STOP if token in ends or self.text.stopped else LENGTH if self.left <= 0 else None
        if ended:
            self._unsent.append(self.text.finish())
            ended = STOP if self.text.stopped else ended
        if ended or (self.streamed and any(self._unsent)):
            self.deliver(TextPiece("".join(self._unsent), ended, len(self.tokens)))
            self._unsent.clear()
        return ended is not None

    def fail(self) -> None:
        """Tell that nothing more comes."""
        self.deliver(TextPiece("", FAILED, len(self.tokens)))


class Batch:
    """Rows that are being answered. For one thread."""

    def __init__(self, hf: Any, pad_id: int) -> None:
        self.rows: list[Generation] = []
        self._hf, self._pad = hf, pad_id
        self._cache: Any = None
        self._visible = torch.zeros(0, 0, dtype=torch.bool, device=hf.device)
        """bool[rows, slots]: false on padding."""

    @property
    def width(self) -> int:
        """Slots of the longest row."""
        return self._visible.shape[1]

    def join(self, new: Sequence[Generation]) -> Tensor:
        """Read the prompts of new rows; returns the logits of their first tokens, float[new, vocabulary]."""
        prompts = [torch.tensor(row.prompt) for row in new]
        ids = pad_sequence(prompts, batch_first=True, padding_value=self._pad, padding_side="left").to(self._hf.device)
        lengths = torch.tensor([[len(row.prompt)] for row in new], device=self._hf.device)
        visible = torch.arange(ids.shape[1], device=self._hf.device) >= ids.shape[1] - lengths
        cache = empty_cache()
        logits = self._forward(ids, visible, (visible.cumsum(1) - 1).clamp(min=0), cache)
        if self.rows:
            for own, added in zip(self._cache.layers, cache.layers, strict=True):
                own.join(added)
            width = max(self.width, visible.shape[1])
            visible = torch.cat([pad(held, (width - held.shape[1], 0)) for held in (self._visible, visible)])
            cache = self._cache
        self._cache, self._visible = cache, visible
        self.rows += new
        return logits

    def step(self) -> Tensor:
        """Feed the newest token of each row; returns the logits of the next ones, float[rows, vocabulary]."""
        ids = torch.tensor([[row.tokens[-1]] for row in self.rows], device=self._hf.device)
        places = self._visible.sum(1, keepdim=True)
        self._visible = pad(self._visible, (0, 1), value=True)
        return self._forward(ids, self._visible, places, self._cache)

    def drop(self, gone: Sequence[Generation]) -> None:
        """Take rows out, and the slots that were padding in all others."""
        places = [place for place, row in enumerate(self.rows) if row not in gone]
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        if not places:
            self._cache, self._visible = None, self._visible[:0, :0]
            return
        kept = torch.tensor(places, device=self._hf.device)
        visible = self._visible[kept]
        first = int(visible.any(0).int().argmax())
        self._visible = visible[:, first:]
        for layer in self._cache.layers:
            layer.keep(kept, first)

    def _forward(self, ids: Tensor, visible: Tensor, places: Tensor, cache: Any) -> Tensor:
        out = self._hf(
            input_ids=ids, attention_mask=visible, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = out.logits[:, -1]
        return logits
