"""Make text of unknown origin safe to show on a terminal."""

from __future__ import annotations

import re

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
