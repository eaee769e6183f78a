"""The training folder's plain files: status, and the append-only logs of steps, evaluations and events.

Written here and read by everyone else (the launcher, MLflow's follower, the monitor page); docs/architecture.md lists the fields.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from talaria.common.files import write_atomically

State = Literal["running", "done", "preempted", "failed"]
METRICS, EVALS, EVENTS, STATUS = "metrics.jsonl", "evals.jsonl", "events.jsonl", "status.json"
MARKER = "complete.json"
"""Of a checkpoint, written last."""
_FAILED = ".failed"
"""Exists from the first failure on: the rank that creates it writes the status, as the others fail only in its wake."""


class RunFolder:
    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def metrics(self, record: dict[str, Any]) -> None:
        self._append(METRICS, record)

    def evaluation(self, record: dict[str, Any]) -> None:
        self._append(EVALS, record)

    def event(self, kind: str, message: str, step: int, **more: Any) -> None:
        """kind: start, resume, checkpoint, export, preempted, failed, done, loss_spike or warning."""
        self._append(EVENTS, {"time": time.time(), "step": step, "kind": kind, "message": message, **more})

    def status(self) -> dict[str, Any] | None:
        try:
            status: dict[str, Any] = json.loads((self.root / STATUS).read_text())
        except FileNotFoundError:
            return None
        return status

    def set_status(self, state: State, **fields: Any) -> None:
        """Replace the status; fields that are not named stay (the launcher adds mlflow_run_id)."""
        if state == "running":
            (self.root / _FAILED).unlink(missing_ok=True)
        status = {"kind": None, **(self.status() or {}), "state": state, "time": time.time(), **fields}
        write_atomically(self.root / STATUS, json.dumps(status, indent=1))

    def fail(self, reason: str, kind: Literal["user", "crash"], step: int, **more: Any) -> bool:
        """Record a failure, unless another rank has done so; returns whether this one was first."""
        try:
            os.close(os.open(self.root / _FAILED, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        self.set_status("failed", reason=reason, kind=kind)
        self.event("failed", reason, step, reason_kind=kind, **more)
        return True

    def rewind(self, step: int) -> None:
        """Forget steps and evaluations after `step`, so that the joined logs read as if nothing had been interrupted."""
        for name in (METRICS, EVALS):
            path = self.root / name
            if path.exists():
                kept = [line for line, record in _lines(path) if record["step"] <= step]
                write_atomically(path, "".join(kept))

    def evaluations(self) -> list[dict[str, Any]]:
        path = self.root / EVALS
        return [record for _, record in _lines(path)] if path.exists() else []

    def _append(self, name: str, record: dict[str, Any]) -> None:
        with (self.root / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Whole lines and what they hold; a line cut off by a kill is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                with contextlib.suppress(json.JSONDecodeError):
                    yield line, json.loads(line)


def step_of(export: Path) -> int:
    return int(export.name.removeprefix("step-"))


METRICS, EVALS, EVENTS, SYSTEM = "metrics.jsonl", "evals.jsonl", "events.jsonl", "system.jsonl"


STATUS, CONFIG, MLFLOW = "status.json", "config.json", "mlflow.json"


@dataclass(frozen=True)
class Place:
    """A training's folder. `finished`: published in the store, so that it will not change any more."""

    key: str
    folder: Path
    finished: bool
