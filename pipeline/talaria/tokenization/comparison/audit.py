"""A sample of every run's rows is compared with what transformers makes of the saved folder, beside the encoding.

Which rows: SPREAD of them at random, evenly over the whole parquet, and of each odd shape the first few of every shard. Five
hundred rows find what is wrong with one row of a hundred in 99 runs of 100, and with one of a thousand in two runs of five;
what goes wrong with one shape only is found where that shape is known here. The number depends neither on threads nor on parts.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from talaria.tokenization.encoder import Encoded, Mask
from talaria.tokenization.parquet_chunks import MessageRows, RowRange
from talaria.tokenization.tokenizer import Ids, Offsets

SPREAD = 500
"""Rows that every run compares, whatever their shape."""
EACH_SHAPE = 4
"""Rows of each odd shape that are compared beside them in each shard."""


class Candidate(NamedTuple):
    """A row that may be compared."""

    number: int
    """In the parquet."""
    shapes: frozenset[str]
    """Why: odd shapes that it has; none where it is one of those spread over the file."""
    rows: MessageRows
    """The row alone."""
    ids: Ids
    mask: Mask


def candidates(chunk: RowRange, in_all: int, rows: MessageRows, encoded: Encoded, odd: dict[str, Mask]) -> list[Candidate]:
    """Choose of a chunk's usable rows. `in_all`: rows of the parquet. `odd`: which messages have each odd shape."""
    batch = encoded.batch
    usable = (np.diff(encoded.messages.offsets) > 0) & ~encoded.unusable  # transformers takes no empty conversation
    shapes: dict[int, set[str]] = {}
    for shape, messages in odd.items():
        for row in first_rows(messages, encoded.messages.offsets):
            if usable[row]:
                shapes.setdefault(row, set()).add(shape)
    usable[list(shapes)] = False
    numbers = sorted([*shapes, *spread(chunk, in_all, np.flatnonzero(usable).tolist())])
    taken = rows.take(numbers)
    return [
        Candidate(
            chunk.start + row,
            frozenset(shapes.get(row, ())),
            taken.slice(place, place + 1),
            batch.ids[slice(*batch.offsets[row : row + 2])].copy(),
            batch.mask[slice(*batch.offsets[row : row + 2])].copy(),
        )
        for place, row in enumerate(numbers)
    ]


def spread(chunk: RowRange, in_all: int, rows: Sequence[int]) -> list[int]:
    """The chunk's share of the parquet's SPREAD, drawn from these rows."""
    share = min(SPREAD, in_all)
    wanted = chunk.stop * share // in_all - chunk.start * share // in_all
    return random.SystemRandom().sample(rows, min(wanted, len(rows)))


def first_rows(messages: Mask, offsets: Offsets) -> Iterable[int]:
    """The first few rows that have such a message."""
    rows = np.unique(np.searchsorted(offsets, np.flatnonzero(messages), side="right") - 1)
    return [int(row) for row in rows[:EACH_SHAPE]]


class Audit:
    """Compares rows on a thread of its own. A context manager; what is under way is given up where the run fails."""

    def __init__(self, compare: Callable[[Sequence[Candidate]], None], close: Callable[[], None]) -> None:
        """`compare` raises where a row is not what it should be; `close` comes last."""
        self._compare, self._close = compare, close
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._pending: deque[Future[None]] = deque()
        self._seen: Counter[tuple[int, str]] = Counter()
        self.compared = 0

    def add(self, shard: int, found: Iterable[Candidate]) -> None:
        """Compare those of a chunk that are wanted; chunks come in order. Raises what an earlier comparison raised."""
        if wanted := list(self._wanted(shard, found)):
            self._pending.append(self._pool.submit(self._compare, wanted))
            self.compared += len(wanted)
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def finish(self) -> None:
        """Wait for the last comparison. Raises what one raised."""
        while self._pending:
            self._pending.popleft().result()

    def _wanted(self, shard: int, found: Iterable[Candidate]) -> Iterator[Candidate]:
        for candidate in found:
            here = [(shard, shape) for shape in candidate.shapes]
            if not here or any(self._seen[shape] < EACH_SHAPE for shape in here):
                self._seen.update(here)
                yield candidate

    def __enter__(self) -> Audit:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._close()
