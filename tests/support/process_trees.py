"""Processes for tests about processes: found by a mark in their environment, whoever their parent is by now."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
MARK = "TALARIA_TEST_MARK"


def new_mark() -> str:
    return uuid.uuid4().hex


def marked(mark: str) -> dict[int, list[str]]:
    """Living processes with the mark: pid -> arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found[int(entry.name)] = (entry / "cmdline").read_bytes().decode().split("\0")
    return found


def eventually(look: Callable[[], T], within: float = 30.0, every: float = 0.02) -> T:
    """The first true value of `look`; fails when there is none in time. How long it takes decides nothing else."""
    deadline = time.monotonic() + within
    while not (value := look()):
        assert time.monotonic() < deadline, f"did not come about within {within} s"
        time.sleep(every)
    return value


def kill_marked(mark: str) -> None:
    """For a test's end, however it ended."""
    for pid in marked(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, 9)
