"""Which rows of a mixture's messages.parquet come from which source, and which are held out: ranges, kept in the file itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

KEY = "talaria.mixture"


@dataclass(frozen=True)
class MixtureLayout:
    """Held-out rows come first, whatever is trained beside them, so that they are the same bytes under any weights."""

    held_out: int
    """Rows [0, held_out) are held out."""
    ranges: tuple[tuple[str, int, int], ...]
    """(source, first row, row after the last), rising, without gaps; a source may have two."""

    @classmethod
    def of_parquet(cls, path: Path) -> MixtureLayout | None:
        """Return the layout that convert wrote into the file, or None for data of a single source."""
        found = (pq.read_metadata(path).metadata or {}).get(KEY.encode())
        return None if found is None else cls.of_json(json.loads(found))

    @classmethod
    def of_json(cls, value: Any) -> MixtureLayout:
        return cls(value["held_out"], tuple((name, start, stop) for name, start, stop in value["ranges"]))

    def as_json(self) -> dict[str, Any]:
        return {"held_out": self.held_out, "ranges": [list(one) for one in self.ranges]}

    @property
    def names(self) -> list[str]:
        """The sources, in the order of their first rows."""
        return list(dict.fromkeys(name for name, _, _ in self.ranges))

    def by_source(self, rows: Sequence[int] | npt.NDArray[np.int64]) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
        """Yield each source that has some of `rows` (int64[n], rising) with their places in it, int64[m]."""
        edges = np.searchsorted(rows, [start for _, start, _ in self.ranges] + [self.ranges[-1][2]])
        for name in self.names:
            places = [np.arange(edges[n], edges[n + 1]) for n, (owner, _, _) in enumerate(self.ranges) if owner == name]
            found = np.concatenate(places).astype(np.int64)
            if len(found):
                yield name, found
