"""Locks between real processes: they end with their holder, are held on by a child, and are taken in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from talaria.common.locks import Busy, locked

from tests.support import process_trees

HOLD = """
import sys, time; from pathlib import Path; from talaria.common.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_holder_is_told_who_has_it_and_waits_until_that_one_dies(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock")

    def on_wait(told: str) -> None:
        assert f"process {first.pid} on " in told
        first.kill()

    with locked(tmp_path / "lock", on_wait=on_wait):
        first.wait()
    assert not (tmp_path / "lock").exists()


def test_waiting_ends_with_the_time_or_when_given_up(tmp_path: Path) -> None:
    first = holder(tmp_path / "lock")
    try:
        with pytest.raises(Busy, match=f"lock is held by process {first.pid}"), locked(tmp_path / "lock", wait=0.2):
            pass
        with pytest.raises(Busy), locked(tmp_path / "lock", give_up=lambda: True):
            pass
    finally:
        first.kill()
        first.wait()


def test_a_child_that_inherits_the_lock_holds_it_on(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    with pytest.raises(Busy), locked(path, wait=0):
        pass
    child.kill()
    child.wait()
    with locked(path, wait=0):
        pass


# Appends to a log what a critical section does; another process inside it at the same time would show.
TURNS = """
import sys; from pathlib import Path; from talaria.common.locks import locked
for _ in range(20):
    with locked(Path(sys.argv[1]) / "lock"):
        count = Path(sys.argv[1]) / "count"
        count.write_text(str(int(count.read_text()) + 1))
"""


def test_one_at_a_time_although_each_holder_removes_the_file(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    racers = [subprocess.Popen([sys.executable, "-c", TURNS, str(tmp_path)]) for _ in range(4)]
    assert [racer.wait(60) for racer in racers] == [0] * 4
    assert (tmp_path / "count").read_text() == "80"


STAGE = """
import json, sys, time; from pathlib import Path; from talaria.store.store import Store
def write(folder):
    with (Path(sys.argv[1]) / "made").open("a") as made: made.write("x")
    time.sleep(float(sys.argv[2]))
    (folder / "out").touch()
    return {}
print(json.dumps(Store(sys.argv[1]).run("train", "a" * 64, write, described_by={}, resumable=True).as_json()))
"""


def test_of_two_runs_of_a_resumable_stage_the_second_waits_and_reuses(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path), "0.5"], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [json.loads(run.communicate(timeout=60)[0]) for run in runs]
    assert sorted(output["reused"] for output in outputs) == [False, True]
    assert outputs[0]["path"] == outputs[1]["path"]
    assert (tmp_path / "made").read_text() == "x"
    assert [path.name for path in (tmp_path / ".work").iterdir()] == []


def test_a_killed_run_of_a_resumable_stage_leaves_the_way_free(tmp_path: Path) -> None:
    first = subprocess.Popen([sys.executable, "-c", STAGE, str(tmp_path), "60"])
    process_trees.eventually((tmp_path / "made").exists)
    first.kill()
    first.wait()
    second = subprocess.run([sys.executable, "-c", STAGE, str(tmp_path), "0"], capture_output=True, text=True, timeout=60)
    assert json.loads(second.stdout)["reused"] is False
