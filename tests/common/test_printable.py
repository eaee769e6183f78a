"""Text of unknown origin steers no terminal."""

from __future__ import annotations

import pytest
from talaria.cli import app
from talaria.common.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve, 日本語, עברית, 👩‍🚀 \u200d", "plain, naïve, 日本語, עברית, 👩‍🚀 \u200d"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J\x85", "\\x9b2J\\x85"),
        ("a\u202eb\u2066c\ufeff", "a\\u202eb\\u2066c\\ufeff"),
        ("two\nlines\t\r", "two\\nlines\\t\\r"),
        ("\ud800 \U000e0041", "\\ud800 \\U000e0041"),
    ],
)
def test_what_acts_on_a_terminal_is_written_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_line_breaks_stay_where_a_text_has_lines() -> None:
    assert printable("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_sentences_facts_and_remarks_of_the_command_line_are_printable(capsys: pytest.CaptureFixture[str]) -> None:
    app._refuse("x.jsonl: column '\x1b]0;t\x07\x9b2J\u202e' holds two types.")
    app.say("a\x1b[31m remark")
    app.finish({"dropped \x9b": {"a": 1}, "note": "\u202e"}, as_json=False)
    captured = capsys.readouterr()
    written = captured.out + captured.err
    assert written.count("\n") == 4
    assert all(printable(line) == line for line in written.splitlines())
