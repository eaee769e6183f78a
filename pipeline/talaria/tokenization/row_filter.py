"""What becomes of a chunk of conversations: sampled, encoded, compared, dropped or kept, and given to a split."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import scalar, to_numpy
from talaria.config.schema import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization import reasons
from talaria.tokenization.chatml_rows import ChatmlRows
from talaria.tokenization.dataset import TRAIN, VALIDATION
from talaria.tokenization.encoder import Encoded, Mask, Messages, TokenBatch
from talaria.tokenization.parquet_chunks import MessageRows, RowRange
from talaria.tokenization.tokenizer import Loading
from talaria.tokenization.tokenizer_folder import CHATML, template_source

AUDITED, AUDIT_SHARE, AUDIT_SHARE_BEYOND = 100_000, 0.01, 0.001
"""Every run compares this share of its first so many rows with Hugging Face's tokenizer, and this one of those beyond. A thousand
rows find what is wrong with one row of a hundred for certain, and with one of a thousand in two runs of three."""

_KNOWN = ("role", "content", "tool_calls", "reasoning_content", "name", "tool_call_id", *chat.SWITCHES)
"""Fields of a message that are rendered, switch the loss, or identify (name, tool_call_id: as the template has them)."""


@dataclass(frozen=True)
class Kept:
    """What is left of a chunk, by split, and the counts of everything that happened to it."""

    shard: int
    rows: int
    """Of the chunk, kept or not."""
    splits: dict[str, TokenBatch]
    counts: Counter[str]


class RowEncoder(Protocol):
    """Rows to ids and masks by one rule; threads share it."""

    source: str
    """The chat template that renders what is encoded."""

    @property
    def facts(self) -> dict[str, Any]:
        """How the rows were encoded: template, backend, fallback."""

    @property
    def control_tokens(self) -> str:
        """A pattern of the tokens that text from the data may look like."""

    def sample(self, numbers: list[int], rows: MessageRows) -> Any:
        """What `encode` compares with, of these rows of a chunk; called ahead, while an encoder may still be loading."""

    def encode(self, rows: MessageRows, first_row: int, sampled: Any) -> Encoded:
        """The rows of a chunk. Raises DataError that names a row which cannot be encoded, unless such rows are dropped."""


def row_encoder(parquet: Path, folder: Path, config: Tokenize) -> RowEncoder:
    """By the ChatML rule where that is exact, by a chat template otherwise.

    Raises DataError where the tokenizer or the template cannot be used.
    """
    loading = Loading(folder, config.backend)
    source = template_source(config.template, folder) if config.template != CHATML else chat.template(loading.oracle.bos_text)
    if config.template == CHATML and loading.pieces_equal_whole(chat.END, chat.HEADER):
        return ChatmlRows(parquet, loading, config)
    from talaria.tokenization.rendered.rows import RenderedRows

    return RenderedRows(parquet, loading, config, source)


class Selector:
    """Chunks and rows in, Kept out, in two steps: `sample` needs no encoder, which may still be loading.

    Holds no state, so that threads can share it.
    """

    def __init__(self, parquet: Path, folder: Path, config: Tokenize, held_out_rows: int | None = None) -> None:
        """`held_out_rows`: of a mixture, whose first rows these are."""
        self.config = config
        self.held_out_rows = held_out_rows
        self.splits = [TRAIN, VALIDATION] if config.validation_fraction or held_out_rows else [TRAIN]
        self.encoder = row_encoder(parquet, folder, config)

    def sample(self, unsampled: Iterator[tuple[RowRange, MessageRows]]) -> Any:
        """Of the next of these chunks, a random share of the rows, at least one."""
        return self._sample(*next(unsampled))

    def _sample(self, chunk: RowRange, rows: MessageRows) -> Any:
        count = len(rows.messages)
        share = AUDIT_SHARE if chunk.start < AUDITED else AUDIT_SHARE_BEYOND
        numbers = sorted(random.SystemRandom().sample(range(count), math.ceil(share * count)))
        return self.encoder.sample(numbers, rows)

    def __call__(self, item: tuple[Any, tuple[RowRange, MessageRows]]) -> Kept:
        sampled, (chunk, rows) = item
        if sampled is None:  # not ahead: an encoder is there
            sampled = self._sample(chunk, rows)
        encoded = self.encoder.encode(rows, chunk.start, sampled)
        counts = (
            oddities(encoded.messages, self.encoder.control_tokens)
            + ignored_fields(rows.messages, encoded.messages, self.encoder.source)
            + encoded.counts
        )
        batch, keep = self._fit(encoded, counts)
        if len(self.splits) == 1:
            return Kept(chunk.shard, len(batch), {TRAIN: batch.select(keep)}, counts)
        if self.held_out_rows is None:
            held_out = held_out_rows(encoded.messages, self.config.validation_fraction)
        else:
            held_out = np.arange(chunk.start, chunk.stop) < self.held_out_rows
        splits = {TRAIN: batch.select(keep & ~held_out), VALIDATION: batch.select(keep & held_out)}
        return Kept(chunk.shard, len(batch), splits, counts)

    def _fit(self, encoded: Encoded, counts: Counter[str]) -> tuple[TokenBatch, Mask]:
        """Drop or truncate what is too long, drop what has nothing to learn from; count each."""
        batch = encoded.batch
        long = batch.lengths > self.config.max_tokens
        target = (batch.supervised > 0) & ~encoded.unusable
        counts[reasons.NO_TARGET] = int(np.count_nonzero(~target & ~encoded.unusable))
        if self.config.on_long == "drop":
            counts[reasons.TOO_LONG] = int(np.count_nonzero(target & long))
            return batch, target & ~long
        batch = batch.truncate(self.config.max_tokens)
        keep = target & (batch.supervised > 0)
        counts[reasons.PROMPT_TOO_LONG] = int(np.count_nonzero(target & ~keep))
        counts[reasons.TRUNCATED] = int(np.count_nonzero(keep & long))
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


def ignored_fields(column: pa.Array, messages: Messages, template: str) -> Counter[str]:
    """How many answers have something in each field that neither template nor package reads, as `ignored_fields.NAME`."""
    counts: Counter[str] = Counter()
    turns = column.flatten()
    for field in turns.type:
        if field.name not in _KNOWN and field.name not in template:
            said = to_numpy(pc.struct_field(turns, field.name).is_valid())
            counts[f"{reasons.IGNORED}.{field.name}"] = int(np.count_nonzero(said & messages.answers))
    return counts


def oddities(messages: Messages, control_tokens: str) -> Counter[str]:
    """What is unusual but kept. `control_tokens`: a pattern of them."""
    control = to_numpy(pc.match_substring_regex(messages.content, control_tokens))
    line_break = to_numpy(pc.match_substring_regex(messages.content, r"^\s*[\r\n]"))
    empty = to_numpy(pc.binary_length(messages.content)) == 0
    row = np.searchsorted(messages.offsets, np.flatnonzero(control), side="right")
    first, end = messages.offsets[:-1], messages.offsets[1:]
    first, last = first[end > first], end[end > first] - 1
    after_system = np.minimum(first + to_numpy(pc.equal(messages.role, scalar("system")))[first], last)
    return Counter(
        {
            reasons.CONTROL_TEXT: len(np.unique(row)),
            reasons.LINE_BREAK: int(np.count_nonzero(line_break & messages.answers)),
            reasons.EMPTY: int(np.count_nonzero(empty & messages.answers & ~messages.calls)),
            reasons.ANSWER_FIRST: int(np.count_nonzero(messages.answers[after_system])),
            reasons.NO_ANSWER_LAST: int(np.count_nonzero(~messages.answers[last])),
        }
    )
