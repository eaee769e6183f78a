"""One trial of a sweep: the stage `train` with the trial's settings, which a held-out loss may end early."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from talaria.common.errors import UserError
from talaria.launch import stage as launch
from talaria.launch.diagnosis import Preempted
from talaria.process.supervisor import Stop, stopped_by_signals
from talaria.runs.columns import Journal
from talaria.runs.folder import EVALS, EVENTS, RunFolder, exported, step_of
from talaria.runs.jsonl import read_rows
from talaria.stages.run import run_stage
from talaria.stages.table import STAGES, key_of
from talaria.store.store import Output, Store
from talaria.sweep.early_stop import Curve, Evaluation, curve_of, read_curve, stops_at, total_steps
from talaria.sweep.plan import Trial

Train = Callable[..., dict[str, Any]]
"""`launch.stage.run`, or what shows its progress."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended."""

    number: int
    settings: Mapping[str, Any]
    key: str
    folder: str
    state: Literal["done", "stopped", "failed"]
    """stopped: by the rule of early_stop.py; failed: its loss or gradient was not finite."""
    step: int
    loss: float | None
    """Lowest held-out loss of the models that it keeps; of a stopped one, of its evaluations so far."""
    curve: Curve
    reason: str | None = None
    reused: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return JSON values; a held-out loss that is not finite is null."""
        return {**asdict(self), "curve": [[step, epoch, _finite(loss)] for step, epoch, loss in self.curve]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        curve = [Evaluation(step, epoch, math.inf if loss is None else loss) for step, epoch, loss in value["curve"]]
        return cls(**{**value, "curve": curve})


def run_trial(
    trial: Trial,
    store: Store,
    upstream: Mapping[str, Output],
    references: Sequence[Curve],
    *,
    train: Train = launch.run,
    on_look: Callable[[Path], None] = lambda folder: None,
    stop: Stop | None = None,
    **options: Any,
) -> Outcome:
    """Train the trial, resume it, or tell how it ended before.

    `references`: curves of the references, for a trial that is none. `stop` ends the ranks; absent: SIGTERM and Ctrl-C do.
    Raises what training raises (Preempted, TrainingCrashed, UserError before its first step): the same again goes on from there.
    """
    inputs = {name: upstream[name] for name in STAGES["train"].inputs}
    key, _ = key_of(STAGES["train"], trial.config, {name: output.key for name, output in inputs.items()})
    if found := store.find("train", key):
        return _outcome(trial, key, found.path, references, reused=True)
    work = store.work("train", key)
    if work.is_dir() and _ended(work, references):
        return _outcome(trial, key, work, references, reused=True)
    ending, judge = stop or Stop(), _Judge(references)
    signals = contextlib.nullcontext() if stop else stopped_by_signals(ending)

    def look(folder: Path) -> None:
        on_look(folder)
        if not ending.requested and judge.stops(folder):
            ending.request()

    try:
        with signals:
            function = functools.partial(train, stop=ending, on_look=look, **options)
            output = run_stage("train", trial.config, store, inputs, function=function)
    except Preempted:
        if not judge.stops(work):
            raise
        return _outcome(trial, key, work, references)
    except UserError:
        if not _diverged(work):
            raise
        return _outcome(trial, key, work, references)
    return _outcome(trial, key, output.path, references)


class _Judge:
    """Applies the rule to a training that runs, reading what it has appended since the last look."""

    def __init__(self, references: Sequence[Curve]) -> None:
        self._references = references
        self._journal: Journal | None = None

    def stops(self, folder: Path) -> bool:
        if not self._references:
            return False
        if self._journal is None or self._journal.path.parent != folder:
            self._journal = Journal(folder / EVALS)
        return stops_at(read_curve(self._journal), self._references, total_steps(folder)) is not None


def _ended(work: Path, references: Sequence[Curve]) -> bool:
    """Whether an unpublished training would not go on if it were started again."""
    return _diverged(work) or stops_at(curve_of(work), references, total_steps(work)) is not None


def _diverged(folder: Path) -> bool:
    """Whether a loss or gradient was not finite, which would come again: the event of that failure names the rows."""
    if RunFolder(folder).status().get("state") != "failed":
        return False
    failures = [event for event in read_rows(folder / EVENTS) if event["kind"] == "failed"]
    return bool(failures) and "rows" in failures[-1]


def _outcome(trial: Trial, key: str, folder: Path, references: Sequence[Curve], reused: bool = False) -> Outcome:
    """Tell from the files how a trial ended; the same files give the same answer, however often it was interrupted."""
    curve, status = curve_of(folder), RunFolder(folder).status()
    told = functools.partial(Outcome, trial.number, dict(trial.settings), key, str(folder), reused=reused)
    if at := stops_at(curve, references, total_steps(folder)):
        curve = [one for one in curve if one.step <= at.step]
        best = min(one.loss for one in curve)
        return told("stopped", at.step, _finite(best), curve=curve, reason=f"above the references' median at step {at.step}")
    if _diverged(folder):
        return told("failed", int(status.get("step") or 0), None, curve=curve, reason=str(status.get("reason")))
    last = int(status["step"])
    kept = {step_of(export) for export in exported(folder)} | {last}
    loss = min((one.loss for one in curve if one.step in kept), default=math.nan)
    return told("done", last, _finite(loss), curve=curve)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
