"""Which stretch of a parameter a rank updates, stages and writes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParamSpan:
    """Elements [start, stop) of a flattened parameter of `whole` elements.

    Two ranks share a parameter of 6: ParamSpan(0, 3, 6), ParamSpan(3, 6, 6). All may hold the whole of a small one,
    ParamSpan(0, 6, 6); then one of them has `written_here`.
    """

    start: int
    stop: int
    whole: int
    written_here: bool = True
    """Whether this rank writes it to checkpoints; of ranks that hold the same stretch, one does."""

    @property
    def count(self) -> int:
        return self.stop - self.start

    @property
    def partial(self) -> bool:
        return self.count < self.whole
