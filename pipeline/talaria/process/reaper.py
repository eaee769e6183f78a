"""A small process between a launcher's parent and the launcher, so that no rank outlives its grace period.

    python -m talaria.process.reaper --grace 300 --log train.log --parent PID [--watch PID]... -- accelerate launch ...

Why it must exist: Airflow kills a task's process 5 s after SIGTERM, whatever the task is doing, and torchelastic puts each
rank in a session of its own, so no signal to a process group reaches it. The reaper is a child subreaper: whatever dies in
the tree, its orphans become the reaper's children, so all descendants can be found, waited for and killed. It is told by the
kernel (PR_SET_PDEATHSIG) when its parent dies.

It begins to stop the tree on SIGTERM, SIGINT or SIGHUP, when its parent or a watched process has ended, and when the launcher
has ended and left descendants behind. Stopping means: SIGTERM to the ranks, then, when the grace period is over, SIGKILL to
all. SIGQUIT skips the rest of the grace period. The launcher is not signalled once it has children: torchelastic would give
its ranks 30 s and then kill them, and when its ranks leave by themselves it ends by itself. The exit code is the launcher's,
128 + n where signal n ended it, and comes only when every descendant is gone.

Standard library only, and nothing of it that is slow to import: it is up in some 30 ms.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LISTEN = {*STOP, signal.SIGQUIT, signal.SIGCHLD}
LOOK = 0.5  # seconds between looks at the parent and the watched processes, which send no signal
LOOK_CLOSELY = 0.05  # seconds between looks at a tree that is being stopped


class Process(NamedTuple):
    pid: int
    parent: int
    started: int
    """Clock ticks since boot: with the pid it names one process for good."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m talaria.process.reaper")
    parser.add_argument("--grace", type=float, default=300.0, help="seconds between SIGTERM and SIGKILL")
    parser.add_argument("--log", help="file that takes the command's output; absent: as inherited")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="pid of the process that starts the reaper")
    parser.add_argument("--watch", type=int, action="append", default=[], help="pid of a process whose end stops the tree")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    signal.pthread_sigmask(signal.SIG_BLOCK, LISTEN)  # they are waited for, never caught: no handler, no race
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if options.log:
        log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
    return supervise(options.command, options.grace, options.parent, options.watch)


def supervise(command: Sequence[str], grace: float, parent: int, watch: Sequence[int]) -> int:
    """Run the command and outlive everything that it starts. Returns the exit code."""
    lifelines = {pid: process for pid in watch if (process := alive(pid))}
    if os.getppid() != parent or len(lifelines) < len(set(watch)):  # gone before anybody could tell
        say("a process on which this run depends had ended; nothing was started")
        return 128 + signal.SIGTERM
    try:
        started = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_as_child)
    except OSError as error:
        say(f"cannot start {command[0]}: {error.strerror}")
        return 127
    launcher = started.pid  # `started` is kept alive and not asked again: it would reap the launcher and take its exit code
    code: int | None = None
    deadline = math.inf
    asked: set[Process] = set()
    killed: set[Process] = set()
    while True:
        received = signal.sigtimedwait(LISTEN, LOOK if deadline == math.inf else LOOK_CLOSELY)
        number = received.si_signo if received else None
        code = _collect(launcher, code)
        reason = _reason(number, parent, lifelines, code) if deadline == math.inf else None
        if deadline == math.inf and reason is None:
            continue  # nothing has ended: no need to read all of /proc
        tree = descendants()
        if code is not None and not tree:
            return code
        if reason:
            say(f"{reason}; the processes get {grace:g} s to save and leave")
            deadline = time.monotonic() + grace
        if number == signal.SIGQUIT:
            deadline = -math.inf
        if time.monotonic() > deadline:
            if not killed:
                say(f"out of time; killing {', '.join(str(process.pid) for process in tree)}")
            for process in tree:
                _signal(process, signal.SIGKILL)
            killed.update(tree)
        elif deadline < math.inf:
            for process in _ranks(tree, launcher, asked):
                _signal(process, signal.SIGTERM)
                asked.add(process)


def descendants() -> list[Process]:
    """Return every living descendant of this process."""
    children: dict[int, list[Process]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := alive(int(name))):
            children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    unseen = [os.getpid()]
    while unseen:
        below = children.get(unseen.pop(), [])
        found += below
        unseen += [process.pid for process in below]
    return found


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent process ends: a rank's answer to the loss of reaper and launcher."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def say(text: str) -> None:
    """Write one whole line to the log; a full disk must not end the reaper."""
    with contextlib.suppress(OSError):
        os.write(2, f"reaper: {text}\n".encode())


def _reason(number: int | None, parent: int, lifelines: dict[int, Process], code: int | None) -> str | None:
    """Return why the tree must stop now, or None."""
    if os.getppid() != parent:
        return "the parent process ended"
    if number in (*STOP, signal.SIGQUIT):
        return f"received {signal.Signals(number).name}"
    for pid, process in lifelines.items():
        now = alive(pid)
        if now is None or now.started != process.started:
            return f"process {pid}, on which this run depends, ended"
    return None if code is None else f"the launcher ended with exit code {code} and left processes behind"


def _ranks(tree: list[Process], launcher: int, asked: set[Process]) -> set[Process]:
    """Return the processes to signal: the launcher's children and orphans, or the launcher if it has started none.

    Ranks end their own children; if they do not, those become orphans here.
    """
    ranks = {process for process in tree if process.parent in (launcher, os.getpid()) and process.pid != launcher}
    if not ranks and not asked:
        ranks = {process for process in tree if process.pid == launcher}
    return ranks - asked


def _collect(launcher: int, code: int | None) -> int | None:
    """Reap every dead child; return the launcher's exit code once it has one."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == launcher:
                code = os.waitstatus_to_exitcode(found[1])
                code = 128 - code if code < 0 else code
    return code


def alive(pid: int) -> Process | None:
    """Return the living process with this pid, or None.

    A zombie holds nothing and does not count, unless it has threads: while they die, which takes seconds where there are tens of
    gigabytes of page-locked memory to give back, they hold all that the process had, a GPU's memory too.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold spaces and parentheses
    except (FileNotFoundError, ProcessLookupError):
        return None
    gone = fields[0] in (b"Z", b"X") and int(fields[17]) <= 1
    return None if gone else Process(pid, int(fields[1]), int(fields[19]))


def _signal(process: Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _as_child() -> None:
    """Prepare the launcher before exec: default signals, and SIGTERM if the reaper is killed."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with_parent()


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    sys.exit(main())
