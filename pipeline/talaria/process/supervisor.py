"""The parent's side of the reaper: start a command beneath it, read what it prints, end it when asked."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from talaria.process import reaper

LOOK = 0.1  # seconds between looks at the log
MARK = "TALARIA_RUN"
"""Environment variable of all processes below one reaper; finds them if the reaper is killed."""


class Stop:
    """A request to stop a command. A signal handler can make it at any time, also before the command runs."""

    def __init__(self) -> None:
        self.requested = False
        self._process: subprocess.Popen[bytes] | None = None

    def request(self) -> None:
        """Let the processes save and leave, for as long as their grace period lasts."""
        self.requested = True
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End the grace period."""
        self.requested = True
        self._send(signal.SIGQUIT)

    def end_now(self) -> None:
        """Kill a broken command without a request to stop; it can be started again."""
        self._send(signal.SIGQUIT)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        if self.requested:
            self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)  # does nothing once it has ended


def environment() -> dict[str, str]:
    """Return the environment for a command that this process starts.

    It lacks Airflow's own settings, which hold secrets (its database's, its tokens'). Python, and all that it starts in turn,
    imports nothing from the working folder: a user's file config.py or random.py there would stand for the library's.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW__")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class Started:
    """A command beneath a reaper, in a session of its own."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    grace: float


def run(command: Sequence[str], *, stop: Stop, on_line: Callable[[str], None], **how: Any) -> int:
    """Run a command until every process that it started is gone: `start` and `follow`. Returns the exit code."""
    on_look = how.pop("on_look", lambda: None)
    log: Path = how["log"]
    begin = _size(log)
    return follow(start(command, **how), stop=stop, on_line=on_line, on_look=on_look, begin=begin)


def start(
    command: Sequence[str],
    *,
    log: Path,
    grace: float,
    env: Mapping[str, str],
    inherit: Sequence[int] = (),
    lifelines: Sequence[int] = (),
) -> Started:
    """Start a command beneath a reaper, in a session of its own.

    What it and its processes print is appended to `log`. `inherit`: file descriptors (of locks) that the reaper holds open until
    its end; `lifelines`: processes besides this one whose end stops the command.

    Call it from a thread that lives as long as the command: to the kernel, that thread is the reaper's parent.
    """
    arguments = ["--grace", str(grace), "--log", str(log), "--parent", str(os.getpid())]
    for pid in lifelines:
        arguments += ["--watch", str(pid)]
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        # -I -S: whatever the environment says about Python is for the command, not for the reaper
        [sys.executable, "-I", "-S", reaper.__file__, *arguments, "--", *command],
        stdin=subprocess.DEVNULL,
        env={**env, MARK: mark},
        pass_fds=inherit,
        start_new_session=True,
    )
    return Started(process, mark, log, grace)


def follow(
    started: Started,
    *,
    stop: Stop,
    on_line: Callable[[str], None],
    on_look: Callable[[], None] = lambda: None,
    begin: int | None = None,
) -> int:
    """Hand on what is printed, from byte `begin` of the log on (absent: from now on), until every process is gone.

    Returns the exit code. Should anything raise meanwhile (KeyboardInterrupt, a task's timeout, `on_line` itself), the command is
    stopped and waited for before the exception goes on.
    """
    process = started.process
    begin = _size(started.log) if begin is None else begin
    stop.watch(process)
    try:
        for line in _follow(started.log, begin, process):
            if line is None:
                on_look()
            else:
                on_line(line)
    except BaseException:
        stop.request()
        _wait_for_exit(process, stop)
        raise
    finally:
        if process.returncode < 0:
            _reap_for(started.mark, started.grace)
    return process.returncode


def end(started: Started) -> None:
    """Kill a command that nobody follows, and wait until every process of it is gone."""
    started.process.send_signal(signal.SIGQUIT)
    if started.process.wait() < 0:
        _reap_for(started.mark, 0.0)


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _wait_for_exit(process: subprocess.Popen[bytes], stop: Stop) -> None:
    """Wait for the reaper; an interrupt ends the grace period."""
    while process.poll() is None:
        try:
            time.sleep(LOOK)
        except KeyboardInterrupt:
            stop.kill()


def _reap_for(mark: str, grace: float) -> None:
    """Do the reaper's work after somebody has killed it; its launcher has got SIGTERM from the kernel by then."""
    deadline = time.monotonic() + grace
    asked: set[int] = set()
    while left := _marked(mark):
        late = time.monotonic() > deadline
        for pid in left if late else left - asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked |= left
        time.sleep(LOOK)


def _marked(mark: str) -> set[int]:
    """Return the living processes of one run, whatever their parent."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def _follow(log: Path, begin: int, process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield lines as they are appended, and None after each poll, until the process has ended and all is read."""
    rest = b""
    while True:
        ended = process.poll() is not None  # asked before reading: what was written before the end is read after it
        if log.exists():
            with log.open("rb") as file:
                file.seek(begin)
                while piece := file.read(1 << 20):
                    begin += len(piece)
                    *lines, rest = (rest + piece).split(b"\n")
                    yield from map(_clean, lines)
        yield None
        if ended:
            if rest:
                yield _clean(rest)
            return
        time.sleep(LOOK)


def _clean(line: bytes) -> str:
    """Return what a terminal would show: only the last state of a progress bar that redraws itself."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")


@contextlib.contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """Let SIGTERM or the first Ctrl-C stop the command gracefully; the second Ctrl-C kills it. Main thread only.

    Where the command ended well all the same, the signal came too late for it and is for whatever follows: it is raised again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        again = number == signal.SIGINT and stop.requested
        (stop.kill if again else stop.request)()

    former = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])
