"""A stretch of consecutive source rows on its way through convert: the rows still good, and those set aside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from talaria.data.row_format import Bad


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

    @classmethod
    def whole(cls, table: pa.Table) -> Chunk:
        return cls(table, np.arange(len(table)), len(table))

    def without(self, bad: Mapping[int, tuple[str, str]]) -> Chunk:
        """Set rows of the table aside: index in the table -> (reason, detail)."""
        if not bad:
            return self
        keep = np.ones(len(self.table), np.bool_)
        keep[list(bad)] = False
        found = [Bad(int(self.rows[row]), *why) for row, why in bad.items()]
        return replace(self, table=self.table.filter(pa.array(keep)), rows=self.rows[keep], bad=sorted(self.bad + found))

    def head(self, size: int) -> Chunk:
        """The first `size` rows of the stretch."""
        if size >= self.size:
            return self
        kept = int(np.searchsorted(self.rows, size))
        bad = [bad for bad in self.bad if bad.row < size]
        return replace(self, table=self.table.slice(0, kept), rows=self.rows[:kept], size=size, bad=bad)
