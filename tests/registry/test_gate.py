"""The gate's rule, without MLflow."""

from __future__ import annotations

import pytest
from talaria.registry.gate_record import with_entry
from talaria.registry.promotion.gate import Losses, decide
from talaria.runs.model_card import LIMIT

MONDAY, TUESDAY = "2026-11-23T10:00:00Z", "2026-11-24T10:00:00Z"


@pytest.mark.parametrize(
    ("losses", "margin", "champion", "promoted", "says"),
    [
        (Losses(1.0, 2.0), 0.0, None, True, "below that of the base model, 2.0000"),
        (Losses(2.0, 2.0), 0.0, None, False, "not below that of the base model"),
        (Losses(1.95, 2.0), 0.1, None, False, "by more than 0.1"),
        (Losses(1.0, 2.0, 1.5), 0.0, 3, True, "the base model, 2.0000 and the champion (version 3), 1.5000"),
        (Losses(1.5, 2.0, 1.5), 0.0, 3, False, "not below that of the champion (version 3)"),
        (Losses(1.45, 2.0, 1.5), 0.1, 3, False, "not below that of the champion (version 3)"),
        (Losses(2.5, 2.0, 3.0), 0.0, 3, False, "not below that of the base model"),
        (Losses(1.0, 2.0, None), 0.0, 3, False, "champion (version 3) on its held-out conversations is not known"),
        (Losses(1.0, None), 0.0, None, False, "base model on its held-out conversations is not known"),
        (Losses(None, None), 0.0, None, False, "tokenize.validation_fraction"),
        (Losses(float("nan"), 2.0), 0.0, None, False, "no held-out loss"),
        (Losses(1.0, float("nan")), 0.0, None, False, "not below"),
    ],
)
def test_a_candidate_must_beat_base_and_champion_by_the_margin(losses, margin, champion, promoted, says):
    decision = decide(losses, margin, champion)
    assert decision.promoted is promoted
    assert says in decision.reason


def test_why_the_champion_was_not_measured_is_said():
    assert "another tokenizer" in decide(Losses(1.0, 2.0), 0.0, 3, "it has another tokenizer").reason


def test_the_history_keeps_the_card_and_says_nothing_twice():
    once = with_entry("# Card\n\ntext\n", MONDAY, "It lost.")
    assert with_entry(once, TUESDAY, "It lost.") == once
    twice = with_entry(once, TUESDAY, "It won.")
    assert twice == f"# Card\n\ntext\n\n## Gate\n\n- {MONDAY}: It lost.\n- {TUESDAY}: It won.\n"


@pytest.mark.parametrize("breaks", ["\n", "\r\n"], ids=["as we write", "as a browser's form sends"])
def test_what_people_wrote_stays(breaks):
    text = with_entry("# Card\n", MONDAY, "It lost.")
    edited = f"Ann: not for the demo.\n{text}\n- ask Bob: is the tone right?\n\nSee ticket 12."
    after = with_entry(edited.replace("\n", breaks), TUESDAY, "It won.")
    assert after == (
        f"Ann: not for the demo.\n# Card\n\n## Gate\n\n- {MONDAY}: It lost.\n- {TUESDAY}: It won.\n"
        "\n- ask Bob: is the tone right?\n\nSee ticket 12.\n"
    )
    assert with_entry(after.replace("\n", breaks), TUESDAY, "It won.") == after


def test_the_history_never_outgrows_the_description():
    text = "word " * LIMIT
    for day in range(30):
        text = with_entry(text, f"2026-11-{day + 1:02d}T10:00:00Z", f"reason {day} " + "x" * 300)
    assert len(text) <= LIMIT
    assert "reason 29" in text
    assert "reason 1 " not in text
