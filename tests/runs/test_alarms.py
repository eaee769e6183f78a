"""A training in trouble is noticed while it runs, and each trouble is said once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from talaria.runs.alarms import QUIET_SECONDS, TrainingAlarms

START = 1_800_000_000.0


def write(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    with (folder / name).open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def alarms() -> TrainingAlarms:
    return TrainingAlarms(stall_seconds=60, patience=2, free_disk=0.0, now=START)


def test_a_healthy_training_raises_none(alarms: TrainingAlarms, tmp_path: Path) -> None:
    for step in range(1, 20):
        write(tmp_path, "metrics.jsonl", {"step": step, "loss": 1 / step})
        write(tmp_path, "evals.jsonl", {"step": step, "loss": 1 / step})
        write(tmp_path, "events.jsonl", {"time": START + step, "step": step, "kind": "checkpoint", "message": "saved"})
        assert alarms.look(tmp_path, START + 30 * step) == []


def test_a_spike_is_told_once_and_a_new_one_later(alarms: TrainingAlarms, tmp_path: Path) -> None:
    write(tmp_path, "events.jsonl", {"time": START - 1, "step": 1, "kind": "loss_spike", "message": "of an earlier attempt"})
    assert alarms.look(tmp_path, START) == []
    write(tmp_path, "events.jsonl", {"time": START + 1, "step": 7, "kind": "loss_spike", "message": "loss 9.1 after 2.0"})
    assert alarms.look(tmp_path, START + 2) == ["step 7: loss 9.1 after 2.0"]
    assert alarms.look(tmp_path, START + 3) == []
    write(tmp_path, "events.jsonl", {"time": START + 4, "step": 8, "kind": "loss_spike", "message": "another"})
    assert alarms.look(tmp_path, START + 5) == []  # soon after the first one
    write(tmp_path, "events.jsonl", {"time": START + 6, "step": 9, "kind": "loss_spike", "message": "a third"})
    assert alarms.look(tmp_path, START + 2 + QUIET_SECONDS) == ["step 9: a third"]


def test_a_stall_is_told_until_it_goes_on(alarms: TrainingAlarms, tmp_path: Path) -> None:
    assert alarms.look(tmp_path, START + 500) == []  # loading and compiling; the watchdog has its own limit
    write(tmp_path, "metrics.jsonl", {"step": 4, "loss": 1.0})
    assert alarms.look(tmp_path, START + 501) == []
    assert alarms.look(tmp_path, START + 562) == ["no step has been made for 61 s, the last one was 4"]
    assert alarms.look(tmp_path, START + 600) == []
    write(tmp_path, "metrics.jsonl", {"step": 5, "loss": 1.0})
    assert alarms.look(tmp_path, START + 601) == []
    assert len(alarms.look(tmp_path, START + 700)) == 1


def test_no_progress_is_told_once_for_a_stretch(alarms: TrainingAlarms, tmp_path: Path) -> None:
    write(tmp_path, "evals.jsonl", *({"step": step, "loss": loss} for step, loss in ((1, 3.0), (2, 2.0), (3, 2.1), (4, 2.2))))
    assert alarms.look(tmp_path, START) == ["the last 2 held-out losses are not below 2.0000, that of an earlier step"]
    assert alarms.look(tmp_path, START + 2 * QUIET_SECONDS) == []
    write(tmp_path, "evals.jsonl", {"step": 5, "loss": 1.0})
    assert alarms.look(tmp_path, START + 3 * QUIET_SECONDS) == []


def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = TrainingAlarms(stall_seconds=60, patience=2, free_disk=0.05, now=START)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100 * 10**9, 96 * 10**9, 4 * 10**9))
    assert alarms.look(tmp_path, START) == [f"4.0 GB are free on the disk of {tmp_path}, 4.0% of it"]
