"""Conversations to ids and loss masks by what a chat template renders: exact for any template and tokenizer, or refused.

The rendered text is cut at control tokens that the template wrote and where supervised text begins. The pieces are encoded
each by itself, many conversations in one call, which gives the ids that the whole text has, with two exceptions that the plain
rule has too (chatml.py): text from the data that looks like a control token stays text, and an answer that begins with a line
break does not merge with its prompt. A tokenizer whose pieces alone do not equal the whole (SentencePiece's word-start marker,
control tokens that swallow white space) takes the slow way: the whole text at once, and for the mask each prompt by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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


class Piece(NamedTuple):
    """Text that is encoded by itself, or a control token."""

    text: str
    control: int
    """Its id, TEXT for text."""
    supervised: bool


class Marked(NamedTuple):
    """A rendered conversation and what of it counts in the loss."""

    text: str
    spans: list[LossSpan]


def pieces_of(marked: Marked, controls: re.Pattern[str], ids: dict[str, int]) -> list[Piece]:
    """The pieces of a conversation, in order."""
    pieces: list[Piece] = []
    place = 0
    for _, start, stop in [*marked.spans, LossSpan(0, len(marked.text), len(marked.text))]:
        for part, supervised in ((marked.text[place:start], False), (marked.text[start:stop], True)):
            for at, piece in enumerate(controls.split(part)):
                if piece:
                    pieces.append(Piece(piece.replace(BREAK, ""), ids[piece] if at % 2 else TEXT, supervised))
        place = stop
    return pieces


def encode_pieces(conversations: Sequence[Sequence[Piece]], rows: Sequence[int], encode: Encode) -> TokenBatch:
    """Ids and masks of these conversations; `rows` are theirs in the parquet."""
    pieces = [piece for conversation in conversations for piece in conversation]
    ids, offsets = encode([piece.text for piece in pieces if piece.control == TEXT])
    control = np.array([piece.control for piece in pieces], np.int32)
    lengths = np.ones(len(pieces), np.int64)
    lengths[control == TEXT] = np.diff(offsets)
    out = np.repeat(control, lengths)
    out[out == TEXT] = ids
    mask = np.repeat(np.array([piece.supervised for piece in pieces], np.bool_), lengths)
    ends = starts(lengths)[starts(np.array([len(conversation) for conversation in conversations], np.int64))]
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
