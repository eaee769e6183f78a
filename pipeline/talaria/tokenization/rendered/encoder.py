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
from itertools import chain
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


class Pieces(NamedTuple):
    """A conversation in pieces, in order: text that is encoded by itself, or a control token."""

    texts: list[str]
    controls: list[int]
    """The id of each that is a control token, TEXT for text."""
    supervised: list[bool]


class Marked(NamedTuple):
    """A rendered conversation and what of it counts in the loss."""

    text: str
    spans: list[LossSpan]


def pieces_of(marked: Marked, controls: re.Pattern[str], ids: dict[str, int]) -> Pieces:
    """The pieces of a conversation."""
    pieces = Pieces([], [], [])
    place = 0
    for _, start, stop in [*marked.spans, LossSpan(0, len(marked.text), len(marked.text))]:
        for part, supervised in ((marked.text[place:start], False), (marked.text[start:stop], True)):
            split = controls.split(part)
            found = [(piece, ids[piece] if at % 2 else TEXT) for at, piece in enumerate(split) if piece]
            pieces.texts.extend([piece for piece, _ in found])
            pieces.controls.extend([control for _, control in found])
            pieces.supervised.extend([supervised] * len(found))
        place = stop
    if BREAK in marked.text:
        pieces.texts[:] = [text.replace(BREAK, "") for text in pieces.texts]
    return pieces


def encode_pieces(conversations: Sequence[Pieces], rows: Sequence[int], encode: Encode) -> TokenBatch:
    """Ids and masks of these conversations; `rows` are theirs in the parquet."""
    texts = chain.from_iterable(conversation.texts for conversation in conversations)
    controls = list(chain.from_iterable(conversation.controls for conversation in conversations))
    ids, offsets = encode([text for text, control in zip(texts, controls, strict=True) if control == TEXT])
    control = np.array(controls, np.int32)
    lengths = np.ones(len(controls), np.int64)
    lengths[control == TEXT] = np.diff(offsets)
    out = np.repeat(control, lengths)
    out[out == TEXT] = ids
    supervised = list(chain.from_iterable(conversation.supervised for conversation in conversations))
    mask = np.repeat(np.array(supervised, np.bool_), lengths)
    ends = starts(lengths)[starts(np.array([len(conversation.texts) for conversation in conversations], np.int64))]
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
