"""Columns of a file that grows, is cut off, is rewound and is replaced while it is read."""

from __future__ import annotations

import json
import math
import random
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from talaria.runs.columns import Journal, thin


def row(step: int, **values: object) -> str:
    return json.dumps({"step": step, **values})


def read(path: Path) -> Journal:
    journal = Journal(path)
    journal.refresh()
    return journal


def test_a_missing_file_is_an_empty_one(tmp_path: Path) -> None:
    journal = read(tmp_path / "metrics.jsonl")
    assert list(journal.steps) == []
    assert list(journal.column("loss")) == []
    assert journal.last("loss") is None


def test_only_whole_lines_count_and_the_rest_follows_later(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    text = row(1, loss=3.0) + "\n" + row(2, loss=2.0) + "\n"
    path.write_text(text[:-5])
    journal = read(path)
    assert list(journal.steps) == [1]
    with path.open("a") as file:
        file.write(text[-5:] + row(3, loss=1.0) + "\n")
    journal.refresh()
    assert list(journal.steps) == [1, 2, 3]
    assert list(journal.column("loss")) == [3.0, 2.0, 1.0]
    assert journal.skipped == 0


@given(st.data())
def test_however_the_bytes_arrive_the_columns_are_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = "".join(row(step, loss=step / 7, mfu=None if step % 3 else 0.4) + "\n" for step in range(1, 30)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    path = tmp_path_factory.mktemp("journal") / "metrics.jsonl"
    path.touch()
    journal = Journal(path)
    for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        with path.open("ab") as file:
            file.write(whole[start:stop])
        journal.refresh()
    assert list(journal.steps) == list(range(1, 30))
    assert list(journal.column("loss")) == [step / 7 for step in range(1, 30)]
    assert [value for value in journal.column("mfu") if not math.isnan(value)] == [0.4] * 9


def test_a_line_torn_by_a_crash_is_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1, loss=3.0) + "\n" + '{"step": 2, "lo' + row(3, loss=1.0) + "\n" + row(4, loss=0.5) + "\n[1, 2]\n")
    journal = read(path)
    assert list(journal.steps) == [1, 4]
    assert journal.skipped == 2


def test_a_step_told_again_replaces_what_followed_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(row(step, loss=1.0) + "\n" for step in range(1, 11)))
    journal = read(path)
    with path.open("a") as file:
        file.write("".join(row(step, loss=2.0) + "\n" for step in range(8, 10)))
    journal.refresh()
    assert list(journal.steps) == list(range(1, 10))
    assert list(journal.column("loss")) == [1.0] * 7 + [2.0] * 2


def test_a_file_that_was_rewritten_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(row(step, loss=1.0) + "\n" for step in range(1, 6)))
    journal = read(path)
    path.write_text("".join(row(step, loss=9.0) + "\n" for step in range(1, 9)))  # same inode, longer, other content
    journal.refresh()
    assert list(journal.column("loss")) == [9.0] * 8
    replacement = tmp_path / "new"
    replacement.write_text(row(1, loss=5.0) + "\n")
    replacement.replace(path)
    journal.refresh()
    assert list(journal.column("loss")) == [5.0]
    path.unlink()
    journal.refresh()
    assert list(journal.column("loss")) == []


def test_values_that_are_no_numbers_are_missing_ones(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1, loss="NaN", mfu=None, host="a") + "\n" + row(2, loss=2, new=7) + "\n" + row(3, loss=1 << 1100) + "\n")
    journal = read(path)
    assert [None if math.isnan(value) else value for value in journal.column("loss")][:2] == [None, 2.0]
    assert journal.last("loss") == 2.0
    assert [math.isnan(value) for value in journal.column("new")] == [True, False, True]
    assert set(journal.names()) == {"step", "loss", "new"}


def test_thinning_keeps_every_spike_and_both_ends() -> None:
    noise = random.Random(1)
    values = array("d", [noise.random() for _ in range(100_000)])
    spikes = {12_345: 9.0, 71_234: 7.5, 71_900: -4.0, 99_998: 8.0}
    for index, value in spikes.items():
        values[index] = value
    kept = thin(values, 500)
    assert set(spikes) <= set(kept)
    assert kept[0] == 0
    assert kept[-1] == 99_999
    assert len(kept) <= 1_002
    assert kept == sorted(kept)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=400), st.integers(1, 50))
def test_thinning_keeps_the_extremes_of_anything(numbers: list[float], buckets: int) -> None:
    values = array("d", numbers)
    kept = thin(values, buckets)
    finite = [value for value in values if math.isfinite(value)]
    assert len(kept) <= 2 * buckets + 2
    assert all(math.isfinite(values[index]) for index in kept)
    if finite:
        drawn = [values[index] for index in kept]
        assert (min(drawn), max(drawn)) == (min(finite), max(finite))
