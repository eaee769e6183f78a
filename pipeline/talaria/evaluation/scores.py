"""The scores of a tuned model beside its base's, from the facts of the stage `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def scores(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (name, base, tuned) of the held-out loss, exact match and every task, as text; a dash where nothing was measured."""
    rows = [
        ("held-out loss", facts["base_heldout_loss"], facts["heldout_loss"]),
        ("exact match", facts["base_exact_match"], facts["exact_match"]),
        *((f"task {name}", score["base"], score["tuned"]) for name, score in facts["tasks"].items()),
    ]
    return [(name, _number(base), _number(tuned)) for name, base, tuned in rows]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
