"""What becomes of a chunk of conversations: encoded, sampled, dropped or kept, and given to a split."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.arrow import scalar, to_arrow, to_numpy
from talaria.config.data_settings import Tokenize
from talaria.tokenization import chatml as chat
from talaria.tokenization import reasons
from talaria.tokenization.chatml_rows import ChatmlRows
from talaria.tokenization.comparison import reloaded
from talaria.tokenization.comparison.audit import Candidate, candidates
from talaria.tokenization.comparison.reloaded import Reloaded
from talaria.tokenization.dataset import TRAIN, VALIDATION
from talaria.tokenization.encoder import Encoded, Mask, Messages, TokenBatch
from talaria.tokenization.loading import Loading
from talaria.tokenization.parquet_chunks import MessageRows, RowRange
from talaria.tokenization.tokenizer import Offsets
from talaria.tokenization.tokenizer_folder import CHATML, template_source

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
    candidates: list[Candidate]
    """Rows to compare with transformers."""


Variables = Mapping[str, Any]


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

    holds_the_lock: bool
    """Whether threads would wait for each other most of the time."""

    @property
    def variables(self) -> Variables | None:
        """The special tokens that its template may name: to another process of the run they need only be told."""

    @property
    def day(self) -> datetime.date | None:
        """What its template takes for today."""

    @property
    def reloaded(self) -> Reloaded:
        """The saved folder, which `compare` compares with."""

    def encode(self, rows: MessageRows, first_row: int) -> Encoded:
        """The rows of a chunk. Raises DataError that names a row which cannot be encoded, unless such rows are dropped."""

    def compare(self, candidates: Sequence[Candidate]) -> None:
        """Raise EncodingMismatch where a row is not what transformers makes of the saved folder; for one thread."""


def row_encoder(parquet: Path, folder: Path, config: Tokenize, variables: Variables | None = None) -> RowEncoder:
    """By the ChatML rule where that is exact, by a chat template otherwise.

    Raises DataError where the tokenizer or the template cannot be used.
    """
    if config.template == CHATML:
        reloaded.begin()
    try:
        return _row_encoder(parquet, folder, config, variables)
    finally:
        reloaded.give_up()


def _row_encoder(parquet: Path, folder: Path, config: Tokenize, variables: Variables | None) -> RowEncoder:
    loading = Loading(folder, config.backend)
    if config.template != CHATML:
        source = template_source(config.template, folder)
    else:
        source = chat.template(loading.bos_text)
        with ExitStack() as stack:
            opened = reloaded.reloaded(folder, source)  # told before the vocabulary is there
            stack.callback(opened.close)
            loading.tokenizer  # noqa: B018 (raises DataError where it knows no ChatML)
            if loading.pieces_equal_whole(chat.END, chat.HEADER):
                stack.pop_all()
                return ChatmlRows(parquet, loading, config, source, opened)
    from talaria.tokenization.rendered.rows import RenderedRows

    return RenderedRows(parquet, loading, config, source, variables)


class Selector:
    """Chunks and rows in, Kept out. Holds no state, so that threads can share it."""

    def __init__(
        self,
        parquet: Path,
        folder: Path,
        config: Tokenize,
        rows: int,
        held_out_rows: int | None = None,
        variables: Variables | None = None,
    ) -> None:
        """`rows`: of the parquet. `held_out_rows`: of a mixture, whose first rows these are. `variables`: RowEncoder has them."""
        self.config = config
        self.rows, self.held_out_rows = rows, held_out_rows
        self.splits = [TRAIN, VALIDATION] if config.validation_fraction or held_out_rows else [TRAIN]
        self.encoder = row_encoder(parquet, folder, config, variables)

    def __call__(self, item: tuple[RowRange, MessageRows]) -> Kept:
        chunk, rows = item
        encoded = self.encoder.encode(rows, chunk.start)
        odd = odd_messages(encoded.messages, self.encoder.control_tokens)
        chosen = candidates(chunk, self.rows, rows, encoded, odd | further_shapes(encoded.messages))
        counts = (
            oddities(encoded.messages, odd)
            + ignored_fields(rows.messages, encoded.messages, self.encoder.source)
            + encoded.counts
        )
        batch, keep = self._fit(encoded, counts)
        if len(self.splits) == 1:
            return Kept(chunk.shard, len(batch), {TRAIN: batch.select(keep)}, counts, chosen)
        if self.held_out_rows is None:
            held_out = held_out_rows(encoded.messages, self.config.validation_fraction)
        else:
            held_out = np.arange(chunk.start, chunk.stop) < self.held_out_rows
        splits = {TRAIN: batch.select(keep & ~held_out), VALIDATION: batch.select(keep & held_out)}
        return Kept(chunk.shard, len(batch), splits, counts, chosen)

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

    text, ends = text_of(messages.content)
    limit = int(fraction * 2**64)
    stretches = itertools.pairwise(ends[messages.offsets].tolist())
    hashes = (xxhash.xxh3_64_intdigest(text[start:stop].data) for start, stop in stretches)
    return np.fromiter((value < limit for value in hashes), np.bool_, rows)


def text_of(values: pa.Array) -> tuple[npt.NDArray[np.uint8], Offsets]:
    """The bytes of an array of large_string, and where each text begins and the last one ends."""
    _, ends, data = values.buffers()
    text = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return text, np.frombuffer(ends, np.int64)[values.offset :][: len(values) + 1]


def ignored_fields(column: pa.Array, messages: Messages, template: str) -> Counter[str]:
    """How many answers have something in each field that neither template nor package reads, as `ignored_fields.NAME`."""
    counts: Counter[str] = Counter()
    turns = column.flatten()
    for field in turns.type:
        if field.name not in _KNOWN and field.name not in template:
            said = to_numpy(pc.struct_field(turns, field.name).is_valid())
            counts[f"{reasons.IGNORED}.{field.name}"] = int(np.count_nonzero(said & messages.answers))
    return counts


def odd_messages(messages: Messages, control_tokens: str) -> dict[str, Mask]:
    """Which messages are unusual but kept, by the names of `reasons`. `control_tokens`: a pattern of them."""
    empty = to_numpy(pc.binary_length(messages.content)) == 0
    first, end = messages.offsets[:-1], messages.offsets[1:]
    first, last = first[end > first], end[end > first] - 1
    after_system = np.minimum(first + to_numpy(pc.equal(messages.role, scalar("system")))[first], last)
    begins, ends = np.zeros(len(messages.answers), np.bool_), np.zeros(len(messages.answers), np.bool_)
    begins[after_system[messages.answers[after_system]]] = True
    ends[last[~messages.answers[last]]] = True
    return {
        reasons.CONTROL_TEXT: to_numpy(pc.match_substring_regex(messages.content, control_tokens)),
        reasons.LINE_BREAK: _line_breaks(messages),
        reasons.EMPTY: empty & messages.answers & ~messages.calls,
        reasons.ANSWER_FIRST: begins,
        reasons.NO_ANSWER_LAST: ends,
    }


def oddities(messages: Messages, odd: dict[str, Mask]) -> Counter[str]:
    """How many messages are odd, and how many rows have text that looks like a control token."""
    counts = Counter({name: int(np.count_nonzero(found)) for name, found in odd.items()})
    row = np.searchsorted(messages.offsets, np.flatnonzero(odd[reasons.CONTROL_TEXT]), side="right")
    counts[reasons.CONTROL_TEXT] = len(np.unique(row))
    return counts


def further_shapes(messages: Messages) -> dict[str, Mask]:
    """Which messages have shapes that are nothing unusual, and that a random sample of rows may well not have."""
    asks, instructs = (to_numpy(pc.equal(messages.role, scalar(role))) for role in ("user", "system"))
    return {
        "calls": messages.calls,
        "not_supervised": messages.answers & ~messages.supervised,
        "other_role": ~(messages.answers | asks | instructs),
        "white_space_at_the_end": _WHITE_SPACE[_edge_bytes(messages, last=True)],
    }


def _line_breaks(messages: Messages) -> Mask:
    """Which answers begin with a line break, white space before it or not."""
    found = _WHITE_SPACE[_edge_bytes(messages)] & messages.answers
    some = messages.content.filter(to_arrow(found))
    found[found] = to_numpy(pc.match_substring_regex(some, r"^\s*[\r\n]"))
    return found


def _edge_bytes(messages: Messages, last: bool = False) -> npt.NDArray[np.uint8]:
    """The first or the last byte of each content, 0 of an empty one: a search through all text takes ten times as long."""
    data, ends = text_of(messages.content)
    found = np.zeros(len(ends) - 1, np.uint8)
    filled = ends[1:] > ends[:-1]
    found[filled] = data[(ends[1:] - 1 if last else ends[:-1])[filled]]
    return found


_WHITE_SPACE = np.isin(np.arange(256), list(b" \t\n\v\f\r"))
