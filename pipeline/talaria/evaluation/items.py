"""How one model did on every item that it was measured on: what the gate compares, and pages show.

A file `items/MODEL.parquet` in the output of evaluate (MODEL: base, tuned, or step-NNNNNNNN of a kept one): metric, item, value,
weight, right, tags. A metric's number is its weighted mean. Items are named by a digest of what was asked, so that two models are
compared on the same ones wherever they were measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from talaria.common.errors import DataError
from talaria.evaluation.paired import Floats, Pairs
from talaria.tokenization.dataset import Tokens

FOLDER = "items"
_SLICES = 50
"""Tags with a number of their own in a report."""
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class MetricItems:
    """One metric of one model, an entry an item."""

    items: list[str]
    values: Floats
    weights: Floats
    right: Bools
    """Whether the item counts as answered right; always false for losses."""
    tags: list[list[str]]

    @property
    def mean(self) -> float | None:
        """The weighted mean; None of no items."""
        return float(self.values @ self.weights / self.weights.sum()) if len(self.values) else None

    def slice(self, tag: str) -> MetricItems:
        """Return the items that carry a tag."""
        return self.take([place for place, tags in enumerate(self.tags) if tag in tags])

    def take(self, places: Sequence[int]) -> MetricItems:
        """Return the items at these places."""
        at = np.array(places, dtype=np.int64)
        names, tags = [self.items[place] for place in places], [self.tags[place] for place in places]
        return MetricItems(names, self.values[at], self.weights[at], self.right[at], tags)

    def on(self, items: Sequence[str]) -> MetricItems:
        """Return the items of these names, all of which were measured."""
        places = {name: place for place, name in enumerate(self.items)}
        return self.take([places[name] for name in items])

    def by_tag(self) -> dict[str, float]:
        """Return tag -> mean of its items, by name; of many tags those with the most items."""
        counted = Counter(tag for tags in self.tags for tag in tags)
        found = ((tag, self.slice(tag).mean) for tag, _ in sorted(counted.most_common(_SLICES)))
        return {tag: mean for tag, mean in found if mean is not None}


@dataclass
class Items:
    """Every metric of one model: heldout_loss, exact_match, task/NAME."""

    metrics: dict[str, MetricItems] = field(default_factory=dict)

    def add(self, metric: str, made: MetricItems) -> None:
        """Add a metric; items of weight 0 are left out, and equal ones are told apart by a number."""
        named = MetricItems(distinct(made.items), made.values, made.weights, made.right, made.tags)
        self.metrics[metric] = named.take(np.flatnonzero(made.weights > 0).tolist())

    def find(self, name: str) -> MetricItems | None:
        """Return a metric, or its slice (METRIC/TAG); None where nothing of that name was measured."""
        whole = self.whole(name)
        if whole is None or name in self.metrics:
            return whole
        part = whole.slice(next(name.removeprefix(f"{metric}/") for metric in self.metrics if name.startswith(f"{metric}/")))
        return part if part.items else None

    def whole(self, name: str) -> MetricItems | None:
        """Return the metric that a name is, or is a slice of."""
        return next((one for metric, one in self.metrics.items() if name == metric or name.startswith(f"{metric}/")), None)

    def covers(self, other: Items, name: str) -> bool:
        """Tell whether every item of another model's metric, or of its slice, was measured here, too."""
        mine, theirs = self.whole(name), other.find(name)
        return mine is not None and theirs is not None and set(theirs.items) <= set(mine.items)

    def write(self, path: Path) -> None:
        """Write every metric into one Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = [("metric", pa.string()), ("item", pa.string()), ("value", pa.float64()), ("weight", pa.float64())]
        schema = pa.schema([*kinds, ("right", pa.bool_()), ("tags", pa.list_(pa.string()))])
        parts = [
            pa.table([[name] * len(one.items), one.items, one.values, one.weights, one.right, one.tags], schema=schema)
            for name, one in self.metrics.items()
        ]
        pq.write_table(pa.concat_tables([schema.empty_table(), *parts]), path)

    @classmethod
    def read(cls, path: Path) -> Items:
        """Raises DataError where the file is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path}: cannot read the results per item ({error}); evaluate the model again.") from error
        names = table["metric"].to_pylist()
        found = cls()
        for name in dict.fromkeys(names):
            part = table.filter(pa.array([one == name for one in names]))
            values, weights, right = (part[column].to_numpy() for column in ("value", "weight", "right"))
            found.metrics[name] = MetricItems(part["item"].to_pylist(), values, weights, right, part["tags"].to_pylist())
        return found


def distinct(names: Iterable[str]) -> list[str]:
    """Number the repetitions of a name: a, b, a#1."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        found.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def conversation_ids(tokens: Tokens) -> list[str]:
    """Return a digest of each conversation's ids and loss mask."""
    found = []
    for place in range(len(tokens)):
        ids, mask, _ = tokens.gather([place])
        found.append(xxhash.xxh3_64_hexdigest(ids.tobytes() + mask.tobytes()))
    return found


def pair(ours: MetricItems, theirs: MetricItems, *, lower_is_better: bool) -> Pairs | None:
    """Return improvements of `ours` over `theirs` on all of our items; None where `theirs` lacks one."""
    if not ours.items or not set(theirs.items) >= set(ours.items):
        return None
    others = theirs.on(ours.items).values
    gained = others - ours.values if lower_is_better else ours.values - others
    return Pairs(gained, ours.weights)


def regressions(ours: MetricItems, theirs: MetricItems) -> list[str]:
    """Return the items that the other model has right and this one wrong."""
    theirs_right = {item for item, right in zip(theirs.items, theirs.right, strict=True) if right}
    return [item for item, right in zip(ours.items, ours.right, strict=True) if not right and item in theirs_right]
