"""When a trial stops before its end: a median rule whose answer depends on nothing but held-out losses.

The first trials of a sweep, its references, always train to their end. A later trial stops at an evaluation at which its best
held-out loss so far is above the median of the references' best losses up to the same epoch. Which trials run at the same time,
and in which order they end, does not matter: a sweep that was killed and resumed stops the same trials at the same evaluations.
It follows the median stopping rule of Google Vizier (Golovin et al. 2017), with a fixed set of trials to compare with.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from talaria.runs.columns import Journal
from talaria.runs.folder import EVALS, RunFolder


class Evaluation(NamedTuple):
    step: int
    epoch: float
    loss: float


Curve = Sequence[Evaluation]
"""The held-out evaluations of a training, by step."""


def read_curve(journal: Journal) -> list[Evaluation]:
    """Return what the file has now."""
    journal.refresh()
    columns = zip(journal.steps, journal.column("epoch"), journal.column("loss"), strict=True)
    return [Evaluation(int(step), epoch, loss if math.isfinite(loss) else math.inf) for step, epoch, loss in columns]


def curve_of(folder: Path) -> list[Evaluation]:
    """Return the held-out evaluations of a training folder; empty where there are none."""
    return read_curve(Journal(folder / EVALS))


def best_by(curve: Curve, epoch: float) -> float | None:
    """Return the lowest loss up to an epoch."""
    return min((one.loss for one in curve if one.epoch <= epoch), default=None)


def stops_at(curve: Curve, references: Sequence[Curve], total_steps: int | None) -> Evaluation | None:
    """Return the first evaluation at which the rule stops a trial, or None. The evaluation after its last step stops nothing."""
    for one in curve:
        known = [loss for reference in references if (loss := best_by(reference, one.epoch)) is not None]
        own = best_by(curve, one.epoch)
        if known and own is not None and own > statistics.median(known) and one.step != total_steps:
            return one
    return None


def total_steps(folder: Path) -> int | None:
    """Return how many steps the training in this folder has in all; None before it has said so."""
    found = RunFolder(folder).status().get("total_steps")
    return found if isinstance(found, int) else None
