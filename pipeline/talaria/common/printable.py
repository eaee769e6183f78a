"""Text of unknown origin: made safe to show on a terminal, or refused where it is no text."""

from __future__ import annotations

import json
import re
from typing import Any

_ACTS_ON_A_TERMINAL = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # C0 and C1: escape sequences begin with one of these
    "\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # bidi, invisible
    "\u2028\u2029\ud800-\udfff]"  # line separators, halves of pairs
)


def printable(text: str, keep: str = "") -> str:
    r"""Return `text` with every control, bidi and invisible character written as its escape, except those in `keep`.

    `"\x1b[2J"` becomes `"\\x1b[2J"`, a right-to-left override `"\\u202e"`. Letters of any script, emoji and the joiners that
    they need stay. A sentence on one line keeps none; text of several lines keeps `"\n\t"`.
    """
    return _ACTS_ON_A_TERMINAL.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def require_characters(value: Any) -> None:
    r"""Raise ValueError, a sentence without its end, where a JSON value holds half of a surrogate pair: `"\ud800"` alone.

    JSON can write it, and Python makes it of bytes that are not UTF-8; no tokenizer, file or database takes it.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{_escape(error.object[error.start])} is half of a character and no text") from None
