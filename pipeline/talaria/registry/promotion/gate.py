"""The gate's plain rule: a pure function of three losses. noise_rule.py has the other rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

NO_LOSS = "It has no held-out loss; set tokenize.validation_fraction (or sources.NAME.held_out) above 0."
"""Why neither rule can judge a candidate."""


@dataclass(frozen=True)
class Losses:
    """Losses on the candidate's held-out conversations; None if there is no such model or number."""

    candidate: float | None
    base: float | None
    champion: float | None = None


@dataclass(frozen=True)
class Decision:
    promoted: bool
    reason: str


def decide(losses: Losses, margin: float, champion: int | None, unmeasured: str | None = None) -> Decision:
    """Decide whether to promote. `champion`: its version, if any; `unmeasured`: why its loss is unknown, if it is."""
    rivals = [("the base model", losses.base)] + ([(f"the champion (version {champion})", losses.champion)] if champion else [])
    if losses.candidate is None or not math.isfinite(losses.candidate):
        return Decision(False, NO_LOSS)
    beaten = []
    for name, loss in rivals:
        if loss is None:
            return Decision(False, f"The loss of {name} on its held-out conversations is not known{_because(unmeasured)}.")
        if not losses.candidate < loss - margin:
            return Decision(
                False, f"Its held-out loss {losses.candidate:.4f} is not below that of {name}, {loss:.4f}{_by(margin)}."
            )
        beaten.append(f"{name}, {loss:.4f}")
    return Decision(True, f"Its held-out loss {losses.candidate:.4f} is below that of {' and '.join(beaten)}{_by(margin)}.")


def _because(why: str | None) -> str:
    return f": {why}" if why else ""


def _by(margin: float) -> str:
    return f" by more than {margin:g}" if margin else ""
