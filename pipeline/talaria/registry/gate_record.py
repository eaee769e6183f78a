"""What the gate and people decided about a version, as dated lines in its description."""

from __future__ import annotations

import re

from talaria.runs.model_card import LIMIT

_HEADING = "## Gate"
_ENTRY = re.compile(r"- \d{4}-\d\d-\d\dT[\d:]+Z: ")
_ENTRIES = 10
"""Decisions kept in the description, newest last."""


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
