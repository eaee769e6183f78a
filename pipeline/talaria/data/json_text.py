"""JSON text inside a value (a call's arguments, a row's tools): parsed with a bound on its nesting, written in one form."""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 64
"""Levels of nesting that a row may have. Readers recurse: a few ten thousand levels end the process, not the row."""

TOO_DEEP = "\0nested too deeply"
"""What stands for a row that is nested deeper, from where rows are cut on; no row is such a text."""


def parse(text: str) -> Any:
    """Parse a JSON text. Raises ValueError if it is not JSON or is nested deeper than MAX_DEPTH."""
    if text.count("[") + text.count("{") > MAX_DEPTH and depth_of(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    return json.loads(text)


def dump(value: Any) -> str:
    """Write a value as JSON text: keys keep their order, and only what must be escaped is."""
    return json.dumps(value, ensure_ascii=False)


def depth_of(text: str) -> int:
    """Return the deepest nesting of a JSON text, from its brackets outside strings."""
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif in_string:
            escaped = character == "\\"
            in_string = character != '"'
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
