"""The training folder: the names of its files, and who writes them. Everything that knows a file's name reads it here.

The trainer writes through RunFolder (status, and the append-only logs of steps, evaluations and events); the launcher, the MLflow
run, registration and the Training page only read. docs/architecture.md lists the fields.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from talaria.common.files import read_object, write_atomically
from talaria.runs.jsonl import append_row, whole_lines
from talaria.store.store import LOCK_OF_RUN

State = Literal["running", "done", "preempted", "failed"]
METRICS, EVALS, EVENTS, SYSTEM = "metrics.jsonl", "evals.jsonl", "events.jsonl", "system.jsonl"
OF_SOURCE = "loss/"
"""Followed by the name of a mixture's source: the loss of its conversations in a step, or of those held out."""
STATUS, CONFIG, MLFLOW, LOG, LOCK = "status.json", "config.json", "mlflow.json", "train.log", LOCK_OF_RUN
MODEL, EXPORTS, CHECKPOINTS = "model", "exports", "checkpoints"
"""Folders: the final model, models kept on the way (`exports/step-NNNNNNNN`), and what a training resumes from."""
MARKER = "complete.json"
"""In a checkpoint's folder, written last: without it the checkpoint does not count."""
HOST_MEMORY = "TALARIA_HOST_MEMORY"
"""In the ranks' environment: a folder in memory in which they leave their state for those that are started after them."""
GO = "TALARIA_GO"
"""In the environment of ranks in waiting: they go no further than their imports until this file exists."""
DYING = ".dying"
"""Suffix of the file beside it, which says that the ranks whose place they are to take have begun to die."""
_STEP = "step-"
_FAILED = ".failed"
"""Exists from the first failure on: the rank that creates it writes the status, as the others fail only in its wake."""


@dataclass(frozen=True)
class RunPath:
    """Where a training lies. `finished`: published in the store, so that it will not change any more."""

    key: str
    folder: Path
    finished: bool


class RunFolder:
    """Writes the plain files of one training folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def metrics(self, record: dict[str, Any]) -> None:
        append_row(self.root / METRICS, record)

    def evaluation(self, record: dict[str, Any]) -> None:
        append_row(self.root / EVALS, record)

    def event(self, kind: str, message: str, step: int, **more: Any) -> None:
        """kind: start, resume, checkpoint, export, preempted, failed, done, loss_spike or warning."""
        append_row(self.root / EVENTS, {"time": time.time(), "step": step, "kind": kind, "message": message, **more})

    def status(self) -> dict[str, Any]:
        """Return the fields of status.json; empty before the first start."""
        return read_object(self.root / STATUS)

    def set_status(self, state: State, **fields: Any) -> None:
        """Replace the status; fields that are not named stay (the launcher adds mlflow_run_id)."""
        if state == "running":
            (self.root / _FAILED).unlink(missing_ok=True)
        status = {"kind": None, **self.status(), "state": state, "time": time.time(), **fields}
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

    def rewind(self, step: int) -> int:
        """Forget steps and evaluations after `step`, so that the joined logs read as if nothing had been interrupted.

        Returns how many steps are left; fewer than `step` where lines were damaged.
        """
        left = {METRICS: 0}
        for name in (METRICS, EVALS):
            path = self.root / name
            if path.exists():
                kept = [line for line, record in whole_lines(path) if record["step"] <= step]
                write_atomically(path, b"".join(kept).decode())
                left[name] = len(kept)
        return left[METRICS]


def short_id(key: str) -> str:
    """Return what people call a training by, everywhere: the beginning of its key."""
    return key[:8]


def step_folder(parent: Path, step: int) -> Path:
    """Name the folder of a checkpoint or an export; the names sort as the steps do."""
    return parent / f"{_STEP}{step:08d}"


def step_of(folder: Path) -> int:
    """Return the step that `step_folder` named a folder after."""
    return int(folder.name.removeprefix(_STEP))


def exported(folder: Path) -> list[Path]:
    """List the models that a training folder kept on the way, by step."""
    return sorted((folder / EXPORTS).glob(f"{_STEP}*"))


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the last complete checkpoint of a training folder, or None."""
    return max((marker.parent for marker in (folder / CHECKPOINTS).glob(f"{_STEP}*/{MARKER}")), default=None)
