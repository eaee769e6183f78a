"""What becomes of a chunk of conversations: sampled by the oracle, encoded, compared, dropped or kept, and given to a split."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import scalar, to_arrow, to_numpy
from talaria.config.schema import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization.dataset import TRAIN, VALIDATION
from talaria.tokenization.encoder import Batch, Mask, Messages, encode, flatten
from talaria.tokenization.parquet_chunks import Chunk
from talaria.tokenization.tokenizer import Ids, Loading, Tokenizer

TOO_LONG, NO_TARGET, PROMPT_TOO_LONG = "too_long", "no_supervised_tokens", "prompt_too_long"
DROPS = {
    TOO_LONG: "longer than tokenize.max_tokens",
    NO_TARGET: "no answer that counts in the loss",
    PROMPT_TOO_LONG: "truncated to tokenize.max_tokens, no answer left",
}
TRUNCATED, COMPARED = "truncated", "compared"
CONTROL_TEXT, LINE_BREAK, EMPTY = "control_token_text_rows", "line_break_answers", "empty_answers"
ANSWER_FIRST, NO_ANSWER_LAST = "answer_first_rows", "no_answer_last_rows"
ODDITIES = {
    CONTROL_TEXT: "rows whose text holds a control token; it stays text",
    LINE_BREAK: "answers that begin with a line break; encoded as generation sees them",
    EMPTY: "answers with no content; the model learns to end at once",
    ANSWER_FIRST: "rows that begin with an answer, after at most a system message; it is learnt without a prompt",
    NO_ANSWER_LAST: "rows that do not end with an answer; their last turns teach nothing",
}

AUDIT_SHARE = 0.01
"""Every run compares this share of its rows with Hugging Face's tokenizer."""

_CONTROL = r"<\|(im_start|im_end|endoftext)\|>"


class EncodingMismatch(RuntimeError):
    """Our ids or mask of a row differ from the oracle's: a fault in the encoder or in the rule, never in the data."""


@dataclass(frozen=True)
class Sampled:
    """A random share of a chunk's rows, at least one, in their order, and what the oracle makes of them."""

    rows: list[int]
    ids: Ids
    mask: Mask


@dataclass(frozen=True)
class Kept:
    """What is left of a chunk, by split, and the counts of everything that happened to it."""

    shard: int
    rows: int
    """Of the chunk, kept or not."""
    splits: dict[str, Batch]
    counts: Counter[str]


class Selector:
    """Chunks and messages in, Kept out, in two steps: `sample` needs the oracle only, while the encoder is still being loaded.

    Holds no state, so that threads can share it.
    """

    def __init__(self, parquet: Path, folder: Path, config: Tokenize) -> None:
        self.parquet, self.config = parquet, config
        self._loading = Loading(folder, config.backend)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._loading.tokenizer

    def sample(self, unsampled: Iterator[tuple[Chunk, pa.Array]]) -> Sampled:
        """Of the next of these chunks."""
        _, column = next(unsampled)
        rows = sorted(random.SystemRandom().sample(range(len(column)), math.ceil(AUDIT_SHARE * len(column))))
        return Sampled(rows, *self._by_the_oracle(column.take(to_arrow(np.array(rows)))))

    def __call__(self, item: tuple[Sampled, tuple[Chunk, pa.Array]]) -> Kept:
        sampled, (chunk, column) = item
        messages = flatten(column, chunk.start, str(self.parquet))
        batch = encode(messages, self.tokenizer, self.config.supervise_newline)
        counts = oddities(messages)
        counts[COMPARED] = self._compare(sampled, column, batch)
        held_out = held_out_rows(messages, self.config.validation_fraction)
        batch, keep = self._fit(batch, counts)
        if not self.config.validation_fraction:
            return Kept(chunk.shard, len(column), {TRAIN: batch.select(keep)}, counts)
        splits = {TRAIN: batch.select(keep & ~held_out), VALIDATION: batch.select(keep & held_out)}
        return Kept(chunk.shard, len(column), splits, counts)

    def _by_the_oracle(self, column: pa.Array) -> tuple[Ids, Mask]:
        """Ids and mask of these conversations by the plain rule and Hugging Face's tokenizer."""
        newline = self.config.supervise_newline
        segments = (part for messages in column.to_pylist() for part in chat.segments(messages or [], newline))
        ids, mask = self._loading.oracle.ids(segments)
        return np.array(ids, np.int32), np.array(mask, np.bool_)

    def _compare(self, sampled: Sampled, column: pa.Array, batch: Batch) -> int:
        """How many rows were compared. Raises EncodingMismatch that names the row where an id or a mask differs."""
        stretches = [slice(*batch.offsets[row : row + 2]) for row in sampled.rows]
        ids, mask = (np.concatenate([values[stretch] for stretch in stretches]) for values in (batch.ids, batch.mask))
        if np.array_equal(ids, sampled.ids) and np.array_equal(mask, sampled.mask):
            return len(stretches)
        for row, stretch in zip(sampled.rows, stretches, strict=True):
            ids, mask = self._by_the_oracle(column[row : row + 1])
            if not (np.array_equal(batch.ids[stretch], ids) and np.array_equal(batch.mask[stretch], mask)):
                raise EncodingMismatch(
                    f"{self.parquet}, row {batch.rows[row]}: the encoder's ids differ from Hugging Face's; "
                    "set tokenize.backend to tokenizers and report this row."
                )
        raise AssertionError("conversations differ together but not one by one")

    def _fit(self, batch: Batch, counts: Counter[str]) -> tuple[Batch, Mask]:
        """Drop or truncate what is too long, drop what has nothing to learn from; count each."""
        long = batch.lengths > self.config.max_tokens
        target = batch.supervised > 0
        counts[NO_TARGET] = int(np.count_nonzero(~target))
        if self.config.on_long == "drop":
            counts[TOO_LONG] = int(np.count_nonzero(target & long))
            return batch, target & ~long
        batch = batch.truncate(self.config.max_tokens)
        keep = batch.supervised > 0
        counts[PROMPT_TOO_LONG] = int(np.count_nonzero(target & ~keep))
        counts[TRUNCATED] = int(np.count_nonzero(keep & long))
        return batch, keep


def held_out_rows(messages: Messages, fraction: float) -> Mask:
    """Rows whose content hashes into the lowest `fraction` of the 64-bit range.

    It depends on the text alone: not on the tokenizer, not on other rows; a higher fraction only adds rows.
    """
    rows = len(messages.rows)
    if not fraction:
        return np.zeros(rows, np.bool_)
    import xxhash

    _, ends, data = messages.content.buffers()
    ends = np.frombuffer(ends, np.int64)[messages.content.offset :][messages.offsets].tolist()
    text = memoryview(data) if data is not None else memoryview(b"")
    limit = int(fraction * 2**64)
    hashes = (xxhash.xxh3_64_intdigest(text[start:stop]) for start, stop in itertools.pairwise(ends))
    return np.fromiter((value < limit for value in hashes), np.bool_, rows)


def oddities(messages: Messages) -> Counter[str]:
    """What is unusual but kept."""
    control = to_numpy(pc.match_substring_regex(messages.content, _CONTROL))
    line_break = to_numpy(pc.match_substring_regex(messages.content, r"^\s*[\r\n]"))
    empty = to_numpy(pc.binary_length(messages.content)) == 0
    row = np.searchsorted(messages.offsets, np.flatnonzero(control), side="right")
    first, end = messages.offsets[:-1], messages.offsets[1:]
    first, last = first[end > first], end[end > first] - 1
    after_system = np.minimum(first + to_numpy(pc.equal(messages.role, scalar("system")))[first], last)
    return Counter(
        {
            CONTROL_TEXT: len(np.unique(row)),
            LINE_BREAK: int(np.count_nonzero(line_break & messages.answers)),
            EMPTY: int(np.count_nonzero(empty & messages.answers)),
            ANSWER_FIRST: int(np.count_nonzero(messages.answers[after_system])),
            NO_ANSWER_LAST: int(np.count_nonzero(~messages.answers[last])),
        }
    )
