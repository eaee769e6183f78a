"""A comparison's rows and page, without a model."""

from __future__ import annotations

from talaria.evaluation.compare.page import page
from talaria.evaluation.compare.rows import differs, marked, totals


def row(task: str, *answers: tuple[str, float]) -> dict:
    made = {
        name: {"answer": text, "score": score, "right": score >= 0.5, "why": ""}
        for name, (text, score) in zip("AB", answers, strict=True)
    }
    return {"task": task, "item": "1", "tags": ["t"], "prompt": "<script>p</script>", "expected": "x", "answers": made}


ROWS = [row("one", ("the red fox", 1.0), ("the <b>blue</b> fox", 0.0)), row("one", ("same", 1.0), ("same", 1.0))]


def test_words_that_differ_are_marked():
    assert marked("the red fox", "the blue fox") == [("the ", False), ("blue", True), (" fox", False)]
    assert marked("", "new") == [("new", True)]
    assert [differs(one) for one in ROWS] == [True, False]
    assert totals(ROWS) == {"one": {"A": 1.0, "B": 0.5}}


def test_the_page_reads_no_answer_as_markup_and_loads_nothing():
    text = page(ROWS, "A & B")
    assert "<script>p" not in text
    assert "<b>" not in text
    assert "A &amp; B" in text
    assert "<mark>&lt;</mark>" in text or "<mark>&lt;b&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<article") == 2
    assert 'data-differs="yes"' in text
