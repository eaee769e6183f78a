"""The gate's plain rule and its record: pure functions of numbers and text. noise_rule.py has the other rule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from talaria.runs.model_card import LIMIT

_HEADING = "## Gate"
_ENTRY = re.compile(r"- \d{4}-\d\d-\d\dT[\d:]+Z: ")
_ENTRIES = 10
"""Decisions kept in the description, newest last."""
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


def with_entry(description: str, at: str, text: str) -> str:
    """Return the description with a dated line more in its section "Gate"; the same text twice stays once.

    A text of several lines becomes one. Only that section's own lines are ours: what people wrote before, between or after
    them stays. Where there is no room, the card gives way, from its end.
    """
    text = " ".join(text.split("\n"))
    before, heading, after = description.replace("\r\n", "\n").partition(_HEADING)
    history = after.lstrip("\n").split("\n") if heading else []
    lines = [line for line in history if _ENTRY.match(line)]
    notes = "\n".join(line for line in history if not _ENTRY.match(line)).strip("\n")
    if not lines or not lines[-1].endswith(f": {text}"):
        lines.append(f"- {at}: {text}")
    section = f"\n\n{_HEADING}\n\n" + "\n".join(lines[-_ENTRIES:]) + "\n" + (f"\n{notes}\n" if notes else "")
    return before.rstrip()[: max(0, LIMIT - len(section))] + section[-LIMIT:]


def _because(why: str | None) -> str:
    return f": {why}" if why else ""


def _by(margin: float) -> str:
    return f" by more than {margin:g}" if margin else ""
