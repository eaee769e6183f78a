"""Conversations to ids and loss masks by what a chat template renders: exact for any template and tokenizer, or refused.

The rendered text is cut at control tokens that the template wrote and where supervised text begins. The pieces are encoded
each by itself, many conversations in one call, which gives the ids that the whole text has, with two exceptions that the plain
rule has too (chatml.py): text from the data that looks like a control token stays text, and an answer that begins with a line
break does not merge with its prompt. A tokenizer whose pieces alone do not equal the whole (SentencePiece's word-start marker,
control tokens that swallow white space) takes the slow way: the whole text at once, and for the mask each prompt by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from talaria.tokenization.encoder import TokenBatch, starts, sums
from talaria.tokenization.reasons import INEXACT
from talaria.tokenization.rendered.chat_template import BREAK
from talaria.tokenization.rendered.conversation import RowError
from talaria.tokenization.rendered.loss_spans import LossSpan

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    from talaria.tokenization.tokenizer import Encode

TEXT = -1


class Marked(NamedTuple):
    """A rendered conversation and what of it counts in the loss."""

    text: str
    spans: list[LossSpan]


class Pieces:
    """Conversations in pieces, in order: text that is encoded by itself, or a control token."""

    def __init__(self, splitting: re.Pattern[str], ids: Mapping[str, int]) -> None:
        """`splitting`: a pattern of the control tokens in one group; `ids` has theirs."""
        self._split, self._ids = splitting.split, ids
        self.texts: list[str] = []
        self.controls: list[int] = []
        """Of each piece: the id of a control token, TEXT for text."""
        self.supervised: list[bool] = []
        self.ends: list[int] = []
        """How many pieces there are up to each conversation's end."""

    def add(self, marked: Marked) -> None:
        """Add a conversation."""
        text, place = marked.text, 0
        first = len(self.texts)
        for _, start, stop in marked.spans:
            self._add(text[place:start], False)
            self._add(text[start:stop], True)
            place = stop
        self._add(text[place:], False)
        if BREAK in text:
            self.texts[first:] = [piece.replace(BREAK, "") for piece in self.texts[first:]]
        self.ends.append(len(self.controls))

    def _add(self, part: str, supervised: bool) -> None:
        is_control = False
        for piece in self._split(part):
            if piece:
                if is_control:
                    self.controls.append(self._ids[piece])
                else:
                    self.controls.append(TEXT)
                    self.texts.append(piece)
                self.supervised.append(supervised)
            is_control = not is_control


def encode_pieces(pieces: Pieces, rows: Sequence[int], encode: Encode) -> TokenBatch:
    """Ids and masks of these conversations; `rows` are theirs in the parquet."""
    ids, offsets = encode(pieces.texts)
    control = np.array(pieces.controls, np.int32)
    lengths = np.ones(len(control), np.int64)
    lengths[control == TEXT] = np.diff(offsets)
    out = np.repeat(control, lengths)
    out[out == TEXT] = ids
    mask = np.repeat(np.array(pieces.supervised, np.bool_), lengths)
    ends = starts(lengths)[np.array([0, *pieces.ends], np.int64)]
    return TokenBatch(out, mask, ends, np.array(rows, np.int64), sums(mask, ends))


def encode_whole(marked: Marked, tokenizer: HuggingFaceTokenizer) -> tuple[list[int], list[bool]]:
    """Ids and mask of one conversation by the text as a whole: a span's tokens are those that its end has more than its start.

    Raises RowError where the text up to an edge of a span has other ids by itself: no prompt at inference would have them.
    """
    edges = [edge for span in marked.spans for edge in span[1:]]
    whole, *prefixes = tokenizer.encode_batch([marked.text, *(marked.text[:edge] for edge in edges)], add_special_tokens=False)
    mask = [False] * len(whole)
    for span, before, until in zip(marked.spans, prefixes[::2], prefixes[1::2], strict=True):
        for prefix in (before, until):
            if whole.ids[: len(prefix)] != prefix.ids:
                raise RowError(INEXACT, f"message {span.message}: a token of this tokenizer lies across an edge of the answer")
        mask[len(before) : len(until)] = [True] * (len(until) - len(before))
    return whole.ids, mask


def join(conversations: Sequence[tuple[list[int], list[bool]]], rows: Sequence[int]) -> TokenBatch:
    """Ids and masks end to end."""
    ids = np.array([id for found, _ in conversations for id in found], np.int32)
    mask = np.array([counts for _, found in conversations for counts in found], np.bool_)
    ends = starts(np.array([len(found) for found, _ in conversations], np.int64))
    return TokenBatch(ids, mask, ends, np.array(rows, np.int64), sums(mask, ends))
