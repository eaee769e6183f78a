"""Start, recognise and stop the processes of a local installation."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from talaria.common.files import write_atomically
from talaria.devstack.installation import MARK, SERVICE, Home, Ports, service_environment


@dataclass(frozen=True)
class Service:
    name: str
    command: Sequence[str]


def start(home: Home, ports: Ports, service: Service) -> psutil.Process:
    """Start a service in a session of its own, its output appended to `<home>/logs/<name>.log`."""
    with (home.logs / f"{service.name}.log").open("ab") as log:
        process = subprocess.Popen(
            service.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=service_environment(home, ports, service.name),
            cwd=home.root,
            start_new_session=True,
        )
    found = psutil.Process(process.pid)
    write_atomically(_record(home, service.name), json.dumps({"pid": found.pid, "created": found.create_time()}))
    return found


def running(home: Home, name: str) -> psutil.Process | None:
    """Return the service's main process if it is alive; a pid that was reused does not count."""
    record = _recorded(home, name)
    try:
        process = psutil.Process(record["pid"])
        alive = process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE
    except (KeyError, psutil.NoSuchProcess):
        return None
    return process if alive else None


def descendants(home: Home, services: Iterable[str] | None = None) -> list[psutil.Process]:
    """Return every descendant of the stack's services, found by the mark in its environment."""
    wanted = set(services) if services is not None else None
    return [process for process, service in _marked(home) if wanted is None or service in wanted]


def _marked(home: Home) -> Iterator[tuple[psutil.Process, str]]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            surroundings = process.environ()
            if surroundings.get(MARK) == str(home.root) and process.status() != psutil.STATUS_ZOMBIE:
                yield process, surroundings.get(SERVICE, "")


def stop(home: Home, services: Sequence[str], patience: float, on_wait: Callable[[], None] = lambda: None) -> None:
    """End the services with all their descendants; nothing of them is left when this returns.

    Every service gets SIGTERM and 15 seconds. A training run lives in a session of its own; it is told to stop by the task
    that launched it and gets `patience` seconds to save a checkpoint, and the 15 seconds count from its end, so that the
    task can record it. `on_wait` is called while training saves. What is left after that is killed.
    """
    sessions = {pid for name in services if (pid := _recorded(home, name).get("pid"))}
    for session in sessions & {_session(process) for process in descendants(home, services)}:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session, signal.SIGTERM)
    last = time.monotonic() + patience
    enough = time.monotonic() + 15
    while (left := descendants(home, services)) and time.monotonic() < min(last, enough):
        if any(_session(process) not in sessions for process in left):
            enough = time.monotonic() + 15
            on_wait()
        time.sleep(0.2)
    while left := descendants(home, services):
        kill(left)
        time.sleep(0.1)
    for name in services:
        _record(home, name).unlink(missing_ok=True)


def kill(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL to those that are still alive."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return -1


def _record(home: Home, name: str) -> Path:
    return home.root / f"{name}.pid.json"


def _recorded(home: Home, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(_record(home, name).read_text()))
    except FileNotFoundError:
        return {}
