"""The text of an answer while its tokens come: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class AnswerText:
    """Takes tokens, gives text. What may become a stop string is held back until it is clear."""

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], stops: Sequence[str] = ()) -> None:
        """`hidden`: control tokens that are no text. `stops`: the answer ends before the first of these."""
        from tokenizers.decoders import DecodeStream

        self._tokenizer, self._hidden, self._stops = tokenizer, hidden, stops
        self._stream = DecodeStream(skip_special_tokens=False)
        self._ids: list[int] = []
        self._decoded = 0
        """Characters that the stream has given."""
        self._held = ""
        self.stopped = False
        """Whether a stop string has come."""

    def add(self, token: int) -> str:
        """Return the text that is certain now."""
        if token in self._hidden or self.stopped:
            return ""
        self._ids.append(token)
        piece = self._stream.step(self._tokenizer, token) or ""
        self._decoded += len(piece)
        return self._released(piece)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer: the beginning of a stop string, bytes of half a character."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._ids, skip_special_tokens=False)[self._decoded :]
        text = self._released(rest)
        return text if self.stopped else text + self._held

    def _released(self, piece: str) -> str:
        text = self._held + piece
        found = min((place for stop in self._stops if (place := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.stopped, self._held = True, ""
            return text[:found]
        held = max((beginning_of(stop, text) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def beginning_of(mark: str, text: str) -> int:
    """Length of the longest end of `text` that is a beginning of `mark`, but not all of it."""
    return next((length for length in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:length])), 0)
