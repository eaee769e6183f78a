"""Diagnose how a launch ended, and summarise what it did, from the training folder, the log and the kernel."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from talaria.common.errors import TrainingStopped
from talaria.runs.folder import EVALS, EVENTS, METRICS, RunFolder
from talaria.runs.jsonl import read_rows

_ERROR = re.compile(r"^(?:\[rank\d+\]: ?)?((?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b(?::.*)?)$")
_NOT_STARTED = re.compile(r"^\S+: (No module named .*|error while loading shared libraries: .*|can't open file .*)$")
"""An interpreter that did not come to run anything."""
_SIGNAL = re.compile(r"Signal (\d+) \(SIG\w+\) received by PID|died with <Signals\.\w+: (\d+)>")
_ECHOES = (
    "ChildFailedError",
    "CalledProcessError",
    "SignalException",
    "DistBackendError",
    "Connection closed by peer",
    "Connection reset",
)
"""Errors that follow another's: the launcher's about its ranks, a rank's about its peers."""
_OF_THE_MACHINE = (
    "by signal",
    "(train.hang_timeout)",
    "AcceleratorError",
    "CUDA error",
    "DistBackendError",
    "DistNetworkError",
    "ReplicasDiffer",
)
_GPU_MEMORY = ("OutOfMemoryError", "CUDA out of memory", "CUDA error: out of memory")


class Preempted(TrainingStopped):
    """The training was stopped by a signal; it can resume."""


class TrainingCrashed(TrainingStopped):
    """The training failed; the message names the likely cause."""

    @property
    def by_machine(self) -> bool:
        """Return whether a process, a device or a link failed, not the program: a repetition may succeed."""
        return any(sign in str(self) for sign in _OF_THE_MACHINE)


def facts(folder: Path) -> dict[str, Any]:
    """Return the facts of a finished training: losses as means over supervised tokens, in nats; seconds of its steps."""
    steps, evals = read_rows(folder / METRICS), read_rows(folder / EVALS)
    seconds, tokens = sum(row["seconds"] for row in steps), sum(row["tokens"] for row in steps)
    status = RunFolder(folder).status()
    return {
        "steps": steps[-1]["step"],
        "epochs": steps[-1]["epoch"],
        "loss": steps[-1]["loss"],
        "heldout_losses": {str(row["step"]): row["loss"] for row in evals},
        "tokens": tokens,
        "supervised_tokens": sum(row["supervised_tokens"] for row in steps),
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1),
        "world_size": status["world_size"],
        "starts": sum(row["kind"] in ("start", "resume") for row in read_rows(folder / EVENTS)),
    }


def likely_cause(code: int, lines: Sequence[str], oom_kills: int) -> str:
    """Return the likely reason why the ranks ended, if they recorded none.

    code: the launcher's exit code, 128 + n for signal n; lines: the last ones of the log; oom_kills: processes that the
    kernel killed for want of memory meanwhile.
    """
    killed = code - 128 if code > 128 else _signal_in(lines)
    if any(mark in line for line in lines for mark in _GPU_MEMORY):
        return "the GPU ran out of memory; lower train.max_tokens_per_device, or spread the model over more GPUs"
    if killed == signal.SIGKILL and oom_kills:
        return "a process was killed by the kernel for want of memory; use fewer ranks, or raise the container's memory limit"
    if killed == signal.SIGKILL:
        return "a process was killed by signal 9 (SIGKILL): by somebody's hand, or perhaps by a memory limit out of sight"
    error = next((found for line in lines if (found := _error(line))), None)
    if error:
        return error
    if killed:
        return f"a process ended by signal {killed} ({signal.Signals(killed).name})"
    return f"the launcher ended with exit code {code} and no process said why"


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since it booted, in any container."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return 0  # an old kernel does not count them


def _signal_in(lines: Iterable[str]) -> int | None:
    found = next((match for line in lines if (match := _SIGNAL.search(line))), None)
    return int(found[1] or found[2]) if found else None


def is_echo(error: str) -> bool:
    """Return whether an error only reports the end of another process."""
    return any(echo in error for echo in _ECHOES)


def _error(line: str) -> str | None:
    found = _ERROR.match(line) or _NOT_STARTED.match(line)
    return found[1] if found and not is_echo(line) else None
