"""Locks that end with their holder: flock on a file, which the kernel releases when the last process that has it open ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK = 0.1  # seconds between attempts


class Busy(RuntimeError):
    """The lock was not free in time. The message says who holds it."""


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    wait: float = math.inf,
    on_wait: Callable[[str], None] | None = None,
    give_up: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Hold the lock `path` and yield its file descriptor. A child process that inherits the descriptor holds the lock too.

    Waits up to `wait` seconds for another holder, whose name it passes to `on_wait` once. Raises Busy when the time is over
    or `give_up` turns true. The file is removed by the last holder that leaves in order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait
    told = False
    while (fd := _try(path)) is None:
        holder = f"{path} is held by {_holder(path)}"
        if time.monotonic() >= deadline or give_up():
            raise Busy(holder)
        if on_wait and not told:
            on_wait(holder)
            told = True
        time.sleep(LOOK)
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode(), 0)
        yield fd
    finally:
        os.close(fd)
        _remove(path)


def lock_itself(path: Path, flags: int = os.O_RDONLY, *, wait: bool) -> int | None:
    """Open a file or folder and lock it itself, rather than a file beside it; returns the descriptor, which holds the lock.

    None where there is nothing at `path`, where its holder removed or replaced it meanwhile, and, unless told to `wait`, where
    another process holds it.
    """
    try:
        fd = os.open(path, flags, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(os.fstat(fd), path.stat()):
            return fd
    except (BlockingIOError, FileNotFoundError):  # held, or removed by its holder between open and flock
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


@contextlib.contextmanager
def in_use(*paths: Path) -> Iterator[list[int]]:
    """Hold files or folders against whoever would remove them (`lock_itself`); any number of processes may at once.

    Yields the descriptors, which a child process may inherit to hold them on. What is not there is left out.
    """
    held: list[int] = []
    try:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                held.append(os.open(path, os.O_RDONLY))
                fcntl.flock(held[-1], fcntl.LOCK_SH)
        yield held
    finally:
        for fd in held:
            os.close(fd)


def _try(path: Path) -> int | None:
    return lock_itself(path, os.O_RDWR | os.O_CREAT, wait=False)


def _remove(path: Path) -> None:
    """Remove the file unless somebody (a child that inherited the lock, the next in line) holds it."""
    with contextlib.suppress(FileNotFoundError):  # the folder is gone, or somebody else was faster
        if (fd := _try(path)) is not None:
            path.unlink()
            os.close(fd)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        since = time.strftime("%H:%M:%S", time.localtime(holder["since"]))
        return f"process {holder['pid']} on {holder['host']} since {since}"
    except (OSError, ValueError, KeyError):  # removed or not yet written
        return "another process"
