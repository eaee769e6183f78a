"""A stretch of consecutive source rows on its way through convert: the rows still good, and those set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from talaria.data.conversation.drop_reasons import Bad


@dataclass(frozen=True)
class RowValues:
    """A stretch of source rows as Python values, and its columns for the rows that turn out good."""

    values: list[Any]
    columns: Callable[[list[int]], pa.Table]
    """The columns of the rows at these places."""
    invalid: Bad | None = None
    """What ends the stretch, where the file is not JSON from there on."""
    repaired: int = 0

    def chunk(self, bad: Mapping[int, tuple[str, str]], notes: Counter[str] | None = None) -> Chunk:
        """Return the stretch without the rows of `bad`: index -> (reason, detail)."""
        kept = [row for row in range(len(self.values)) if row not in bad]
        found = [Bad(row, *why) for row, why in bad.items()] + ([self.invalid] if self.invalid else [])
        size = len(self.values) + (self.invalid is not None)
        return Chunk(self.columns(kept), np.array(kept, np.int64), size, sorted(found), self.repaired, notes or Counter())


@dataclass(frozen=True)
class Chunk:
    table: pa.Table
    rows: npt.NDArray[np.int64]
    """For each row of the table its place in the stretch."""
    size: int
    """Rows of the stretch: those of the table and the bad ones."""
    bad: list[Bad] = field(default_factory=list)
    repaired: int = 0
    """Rows whose broken text was mended (half a surrogate pair left out)."""
    notes: Counter[str] = field(default_factory=Counter)
    """How many rows had which shape, and what was mapped or not carried."""

    @classmethod
    def whole(cls, table: pa.Table) -> Chunk:
        """A stretch of which every row is good."""
        return cls(table, np.arange(len(table)), len(table))

    def with_rows(self, own: npt.NDArray[np.int64], others: Chunk, theirs: npt.NDArray[np.int64]) -> Chunk:
        """This chunk, all good, and another one together: `own` and `theirs` are the rows' places in the stretch."""
        places = np.concatenate([own, theirs[others.rows]])
        order = np.argsort(places, kind="stable")
        table = pa.concat_tables([self.table, others.table.cast(self.table.schema)]).combine_chunks().take(pa.array(order))
        bad = [bad._replace(row=int(theirs[bad.row])) for bad in others.bad]
        size = len(own) + len(theirs)
        return Chunk(table, places[order], size, bad, others.repaired, self.notes + others.notes)

    def without(self, bad: Mapping[int, tuple[str, str]]) -> Chunk:
        """Remove rows of the table: index in the table -> (reason, detail)."""
        if not bad:
            return self
        keep = np.ones(len(self.table), np.bool_)
        keep[list(bad)] = False
        found = [Bad(int(self.rows[row]), *why) for row, why in bad.items()]
        return replace(self, table=self.table.filter(pa.array(keep)), rows=self.rows[keep], bad=sorted(self.bad + found))

    def head(self, size: int) -> Chunk:
        """Return the first `size` rows of the stretch."""
        if size >= self.size:
            return self
        kept = int(np.searchsorted(self.rows, size))
        bad = [bad for bad in self.bad if bad.row < size]
        return replace(self, table=self.table.slice(0, kept), rows=self.rows[:kept], size=size, bad=bad)
