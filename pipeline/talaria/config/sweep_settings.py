"""Settings of a sweep: what is tried, and what stops a trial early."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from talaria.config.section import Int, Section


class Sweep(Section):
    """What `talaria sweep` tries (docs/sweeps.md). Nothing else reads it."""

    values: dict[str, list[Any]] = Field(
        {}, description="Setting of train -> values to try, for example {train.lr: [1e-5, 3e-5]}."
    )
    ranges: dict[str, list[float]] = Field(
        {}, description="Setting of train -> [lowest, highest]; each trial draws a number, evenly on a logarithmic scale."
    )
    trials: Int | None = Field(
        None, ge=1, le=1_000, description="Trials to draw at random; absent: every combination of sweep.values."
    )
    seed: Int = Field(0, ge=0, description="Seed of the draws.")
    references: Int = Field(
        3,
        ge=0,
        le=1_000,
        description="First trials, which do not stop early; a later one stops above the median of theirs. 0: none.",
    )
