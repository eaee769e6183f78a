"""Numbers as people and models write them: 1,234.5, -3, 2e-4, 50%."""

from __future__ import annotations

import math
import re
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:[eE][-+]?\d+)?")


def last_number(text: str) -> float | None:
    """Return the last number in a text; None where there is none. A comma counts as a separator of thousands only."""
    found = _NUMBER.findall(text)
    return as_float(found[-1]) if found else None


def as_float(value: Any) -> float | None:
    """Return a number, or a text that is one; None for anything else, NaN and infinities among it."""
    try:
        number = float(value.replace(",", "").replace("\u2212", "-") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
