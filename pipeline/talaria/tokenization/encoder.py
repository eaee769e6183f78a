"""Many conversations at once: chatml.py's rule on Arrow arrays and flat buffers, with no Python list of ids.

Text becomes ids once per message, everything else is done on whole arrays: a message's tokens are
`<|im_start|> [header] text <|im_end|> newline`, so the places of the fixed tokens follow from the lengths of the texts,
and one boolean assignment puts the encoder's ids into the places that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import scalar, to_arrow, to_numpy
from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat
from talaria.tokenization.tokenizer import Ids, Offsets, Tokenizer

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TokenBatch:
    """Conversations end to end."""

    ids: Ids
    mask: Mask
    """True: the token counts in the loss."""
    offsets: Offsets
    """Conversation i is ids[offsets[i]:offsets[i + 1]]."""
    rows: Offsets
    """Each conversation's row in the parquet."""
    supervised: Offsets
    """Supervised tokens of each conversation."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Offsets:
        return np.diff(self.offsets)

    def select(self, keep: Mask) -> TokenBatch:
        """The conversations where `keep` is true."""
        if keep.all():
            return self
        lengths = self.lengths
        tokens = np.repeat(keep, lengths)
        return TokenBatch(self.ids[tokens], self.mask[tokens], starts(lengths[keep]), self.rows[keep], self.supervised[keep])

    def truncate(self, max_tokens: int) -> TokenBatch:
        """The first `max_tokens` tokens of each conversation."""
        lengths = self.lengths
        if not (lengths > max_tokens).any():
            return self
        place = np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], lengths)
        tokens = place < max_tokens
        mask, offsets = self.mask[tokens], starts(np.minimum(lengths, max_tokens))
        return TokenBatch(self.ids[tokens], mask, offsets, self.rows, sums(mask, offsets))


@dataclass(frozen=True)
class Messages:
    """A stretch of the parquet's messages, flattened: message j of row i is number offsets[i] + j."""

    offsets: Offsets
    role: pa.Array
    content: pa.Array
    answers: Mask
    supervised: Mask
    rows: Offsets
    calls: Mask
    """Messages that call a tool."""

    def slice(self, start: int, stop: int) -> Messages:
        """Rows [start, stop) of the stretch."""
        offsets = self.offsets[start : stop + 1]
        first, end = int(offsets[0]), int(offsets[-1])
        role, content = (values.slice(first, end - first) for values in (self.role, self.content))
        answers, supervised, calls = (mask[first:end] for mask in (self.answers, self.supervised, self.calls))
        return Messages(offsets - first, role, content, answers, supervised, self.rows[start:stop], calls)


class EncodingMismatch(RuntimeError):
    """Our ids or mask of a row differ from the oracle's: a fault in the encoder or in the rule, never in the data."""


@dataclass(frozen=True)
class Encoded:
    """A chunk of rows as the trainer will read them."""

    messages: Messages
    batch: TokenBatch
    unusable: Mask
    """Rows that cannot be encoded and are dropped, under the reasons in `counts`."""
    counts: Counter[str]


def flatten(messages: pa.Array, first_row: int, where: str, lenient: Mask | None = None) -> Messages:
    """Split list<struct<role, content, ...>> into arrays. Raises DataError that names `where` and the row of a null.

    `lenient`: rows in which null is as good as empty.
    """
    lengths = pc.list_value_length(messages)
    offsets = starts(to_numpy(pc.fill_null(lengths, 0) if lengths.null_count else lengths))
    turns = messages.flatten()
    role, content = (_text(pc.struct_field(turns, name)) for name in ("role", "content"))
    for name, values in (("role", role), ("content", content)):
        if values.null_count:
            found = np.flatnonzero(to_numpy(values.is_null()))
            of_row = np.searchsorted(offsets, found, side="right") - 1
            for message, row in zip(found, of_row, strict=True):
                if lenient is None or not lenient[row]:
                    number = message - offsets[row]
                    raise DataError(
                        f"{where}, row {first_row + row}: message {number} has no {name}; fix it or drop the row in convert."
                    )
    role, content = (pc.fill_null(values, scalar("")) if values.null_count else values for values in (role, content))
    answers = to_numpy(pc.equal(role, scalar(chat.ASSISTANT)))
    supervised = answers.copy()
    for switch in chat.SWITCHES:
        if turns.type.get_field_index(switch) >= 0:
            supervised &= ~_is_off(pc.struct_field(turns, switch), f"{where}: messages.{switch}")
    calls = np.zeros(len(answers), np.bool_)
    if turns.type.get_field_index("tool_calls") >= 0:
        calls = to_numpy(pc.struct_field(turns, "tool_calls").is_valid())
    return Messages(offsets, role, content, answers, supervised, np.arange(first_row, first_row + len(messages)), calls)


AT_ONCE = 256
"""Rows whose texts and ids stay in a core's cache while they are encoded: two thirds of the time of 4,096 rows at once."""


def encode(messages: Messages, tokenizer: Tokenizer, supervise_newline: bool) -> TokenBatch:
    """Ids and loss masks of every conversation."""
    rows = len(messages.rows)
    parts = [messages.slice(start, min(start + AT_ONCE, rows)) for start in range(0, rows, AT_ONCE)] or [messages]
    return joined([_encode(part, tokenizer, supervise_newline) for part in parts])


def joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    """All their conversations, end to end."""
    if len(batches) == 1:
        return batches[0]
    ids, mask, rows, supervised = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("ids", "mask", "rows", "supervised")
    )
    return TokenBatch(ids, mask, starts(np.concatenate([batch.lengths for batch in batches])), rows, supervised)


def _encode(messages: Messages, tokenizer: Tokenizer, supervise_newline: bool) -> TokenBatch:
    texts = messages.content.to_pylist()
    for number, role in zip(np.flatnonzero(~messages.answers).tolist(), _others(messages), strict=True):
        texts[number] = f"{role}\n{texts[number]}"
    ids, text_offsets = tokenizer.encode(texts)
    header, newline = len(tokenizer.header), len(tokenizer.newline)

    before = np.where(messages.answers, 1 + header, 1)
    message_offsets = starts(before + np.diff(text_offsets) + 1 + newline)
    begin, finish = message_offsets[:-1], message_offsets[1:] - newline
    out = np.empty(message_offsets[-1], np.int32)
    is_text = np.ones(len(out), np.bool_)

    def put(places: Offsets, values: Ids) -> None:
        for step, value in enumerate(values):
            out[places + step] = value
            is_text[places + step] = False

    put(begin, np.array([tokenizer.start], np.int32))
    put(begin[messages.answers] + 1, tokenizer.header)
    put(finish - 1, np.array([tokenizer.end], np.int32))
    put(finish, tokenizer.newline)
    out[is_text] = ids

    end = finish + (newline if supervise_newline else 0)
    edges = np.stack([before, end - begin - before, message_offsets[1:] - end], axis=1)
    values = np.zeros_like(edges, np.bool_)
    values[:, 1] = messages.supervised
    mask = np.repeat(values.ravel(), edges.ravel())
    supervised = sums(edges[:, 1] * messages.supervised, messages.offsets)
    return begun_with(tokenizer.bos, TokenBatch(out, mask, message_offsets[messages.offsets], messages.rows, supervised))


def _others(messages: Messages) -> list[str]:
    """The roles of the messages that are no answers."""
    roles: list[str] = messages.role.filter(to_arrow(~messages.answers)).to_pylist()
    return roles


def begun_with(bos: Ids, batch: TokenBatch) -> TokenBatch:
    """Each conversation behind these ids, which the loss does not count."""
    if not len(bos):
        return batch
    at = np.repeat(batch.offsets[:-1], len(bos))
    ids = np.insert(batch.ids, at, np.tile(bos, len(batch)))
    offsets = batch.offsets + len(bos) * np.arange(len(batch) + 1)
    return TokenBatch(ids, np.insert(batch.mask, at, False), offsets, batch.rows, batch.supervised)


def starts(lengths: npt.NDArray[Any]) -> Offsets:
    """Offsets of stretches of these lengths, laid end to end."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def sums(values: Mask | Offsets, offsets: Offsets) -> Offsets:
    """The sum of each stretch of `values`; of a mask, how often it is true there."""
    # reduceat gives an empty stretch the element at its place, and takes no place past the end
    total = np.zeros(len(offsets) - 1, np.int64)
    filled = offsets[1:] > offsets[:-1]
    if filled.any():
        total[filled] = np.add.reduceat(values, offsets[:-1][filled], dtype=np.int64)
    return total


def _text(values: pa.Array) -> pa.Array:
    """Any string type as one whose offsets cannot overflow."""
    return values if pa.types.is_large_string(values.type) else values.cast(pa.large_string())


def _is_off(values: pa.Array, where: str) -> Mask:
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.bool_)
    if not (pa.types.is_boolean(values.type) or pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise DataError(f"{where} should be a boolean or a number, found {values.type}.")
    off = pc.equal(values.cast(pa.float64()), 0.0)
    return to_numpy(pc.fill_null(off, False))
