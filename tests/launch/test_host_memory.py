"""The folder in memory: there while a launch lasts, gone with it, and swept where a launch was killed."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from talaria.launch import host_memory as module
from talaria.launch.diagnosis import Preempted
from talaria.launch.host_memory import host_memory


@pytest.fixture(autouse=True)
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "MEMORY", tmp_path / "shm")
    (tmp_path / "shm").mkdir()
    return tmp_path / "shm"


def test_it_goes_when_the_launch_is_over(memory: Path, tmp_path: Path) -> None:
    with host_memory(tmp_path / "output") as held:
        assert held
        (held[0] / "rank-0").write_bytes(b"state")
        assert held[0].stat().st_mode & 0o777 == 0o700
    assert not list(memory.iterdir())


def test_it_goes_when_the_launch_is_stopped_or_fails(memory: Path, tmp_path: Path) -> None:
    with contextlib.suppress(Preempted), host_memory(tmp_path / "output") as held:
        assert held
        (held[0] / "rank-0").write_bytes(b"state")
        raise Preempted("stopped")
    assert not list(memory.iterdir())


def test_what_a_killed_launch_left_serves_the_same_training_and_is_removed_by_any_other(memory: Path, tmp_path: Path) -> None:
    with host_memory(tmp_path / "output") as held:
        assert held
        name = held[0].name
    (memory / name).mkdir(mode=0o700)
    (memory / name / "rank-0").write_bytes(b"state")
    with host_memory(tmp_path / "output") as held:
        assert held
        assert (held[0] / "rank-0").read_bytes() == b"state"
        with host_memory(tmp_path / "another"):
            assert (memory / name / "rank-0").exists()  # in use
    (memory / name).mkdir(mode=0o700)
    with host_memory(tmp_path / "another"):
        assert not (memory / name).exists()


def test_a_machine_without_such_a_place_has_none(memory: Path, tmp_path: Path) -> None:
    memory.rmdir()
    with host_memory(tmp_path / "output") as held:
        assert held is None


def test_a_folder_that_somebody_planted_is_not_used(memory: Path, tmp_path: Path) -> None:
    with host_memory(tmp_path / "output") as held:
        assert held
        name = held[0].name
    (tmp_path / "elsewhere").mkdir()
    (memory / name).symlink_to(tmp_path / "elsewhere")
    with host_memory(tmp_path / "output") as held:
        assert held is None
