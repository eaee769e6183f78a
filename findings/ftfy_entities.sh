#!/usr/bin/env bash
# ftfy: the answer to "how do I write < in HTML" is changed to "<", unless a tag stands beside it.
#
# Versions: ftfy 6.3.1
# Guess:    fix_text repairs text that was decoded wrongly, and leaves text alone that is right.
# Seen:     HTML entities are decoded, twice if need be, in each text without a "<" of its own: "Write &lt;" becomes "Write <" and "&amp;lt;" becomes
#           "<", so that the same line is changed in one answer and kept in the next. Typographic quotes become straight ones, line ends \n,
#           and ligatures and wide letters plain letters. unescape_html=False and uncurl_quotes=False keep them.
# Effect:   a corpus that was "only repaired" teaches wrong escapes in code and XML, and answers no longer match their targets. Call
#           fix_encoding, which does what the name of the library says. Talaria changes no text.
source "$(dirname "$0")/install.sh" ftfy==6.3.1
py - <<'PY'
import ftfy

for text, seen in (
    ("Write &lt; for a less-than sign.", "Write < for a less-than sign."),
    ("Escape it twice: &amp;lt;", "Escape it twice: <"),
    ("Write &lt; for a less-than sign, as in <code>a &lt; b</code>.", None),
    ('print(f"it’s {x}")', "print(f\"it's {x}\")"),
    ("first\r\nsecond", "first\nsecond"),
    ("ﬁve", "five"),
):
    fixed = ftfy.fix_text(text)
    print(f"{text!r} -> {fixed!r}; fix_encoding: {ftfy.fix_encoding(text)!r}")
    assert fixed == (seen or text)
    assert ftfy.fix_encoding(text) == text
assert ftfy.fix_text("&lt;", unescape_html=False) == "&lt;"
assert ftfy.fix_encoding("schÃ¶n") == "schön"
PY
