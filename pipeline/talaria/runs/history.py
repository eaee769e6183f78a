"""A training's whole history: its curves, thinned for drawing and sent piece by piece, and what happened to it."""

from __future__ import annotations

import math
import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any, Literal, get_args

from talaria.common.files import read_object
from talaria.runs.columns import Journal, thin
from talaria.runs.folder import CONFIG, EVALS, EVENTS, METRICS, SYSTEM, RunPath
from talaria.runs.jsonl import read_rows, tail
from talaria.runs.summary import finite

Axis = Literal["step", "tokens", "hours"]
HELDOUT = "heldout_loss"
SMOOTH = "smooth"
Curve = Literal["loss", "heldout_loss", "lr", "grad_norm", "tokens_per_second", "mfu", "data_wait_seconds", "memory_bytes"]
CURVES: tuple[Curve, ...] = get_args(Curve)
"""What the page and a terminal draw."""
EVENTS_SHOWN = 100
_ENDINGS = ("preempted", "failed")
_DIGITS = 6


class Training:
    """One training folder, read on with each `refresh`. Hold `lock` over a refresh and the reads that follow it."""

    def __init__(self, run: RunPath) -> None:
        self.run = run
        self.lock = threading.Lock()
        self.metrics = Journal(run.folder / METRICS)
        self.evals = Journal(run.folder / EVALS)
        self._sums: dict[str, tuple[int, array[float]]] = {}
        self._averaged: tuple[tuple[str, int, int], MovingAverage] | None = None

    def refresh(self) -> None:
        self.metrics.refresh()
        self.evals.refresh()

    def history(self) -> dict[str, Any]:
        """Return what the card (`summarize`) leaves out: totals, costs, restarts, checkpoints, events, settings."""
        events = read_rows(self.run.folder / EVENTS)
        tokens, times = self._tokens(), self.metrics.column("time")
        heldout = self.evals.column("loss")
        best = min(thin(heldout, len(heldout)), key=lambda index: heldout[index], default=None)
        system = tail(self.run.folder / SYSTEM)
        cost = system[-1] if system else {}
        saved = [event.get("step") for event in events if event.get("kind") == "checkpoint"]
        return {
            "latest": {name: finite(self.metrics.last(name)) for name in self.metrics.names()},
            "tokens": int(tokens[-1]) if tokens else 0,
            "started": finite(events[0].get("time")) if events else finite(times[0]) if times else None,
            "best_heldout": None if best is None else {"step": int(self.evals.steps[best]), "loss": heldout[best]},
            "restarts": restarts(events),
            "checkpoints": {"count": len(saved), "last_step": saved[-1] if saved else None},
            "events": events[-EVENTS_SHOWN:],
            "cost": {name: finite(cost.get(f"cost/{name}")) for name in ("gpu_hours", "energy_kwh")},
            "skipped_lines": self.metrics.skipped + self.evals.skipped,
            "settings": flat(read_object(self.run.folder / CONFIG)),
        }

    def cursor(self) -> str:
        """Return a cursor to the end of the history; pass it to `series` as `since` to get only later points.

        Step and time of the last row: if a resumed training rewrote that step, the cursor holds no longer and the
        whole history is sent again. It needs no memory here, so any api-server process can answer.
        """
        last = len(self.metrics.steps) - 1
        return _cursor(self.metrics, last) if last >= 0 else ""

    def series(
        self,
        buckets: dict[str, int],
        *,
        since: str = "",
        axis: Axis = "step",
        between: tuple[float, float] | None = None,
        smooth: tuple[str, int] | None = None,
    ) -> dict[str, Any]:
        """Curves of the metrics named in `buckets`, each with at most twice as many points as its value says.

        `between` cuts out a stretch of the axis, for a closer look; `smooth` (a metric and a span in steps) adds the
        curve SMOOTH, that metric's moving average over every step, drawn or not. Returns `cursor`, `whole` (false: append to what
        `since` gave) and `curves`: {name: {"step": [...], "x": [...], "y": [...]}}; x is left out where it is the step.
        The held-out curve is short and its rows come later than their step's metrics: it is always sent whole.
        """
        first = self._after(since)
        x_of = {journal: self._axis(journal, axis) for journal in (self.metrics, self.evals)}
        curves = {}
        for name, most in buckets.items():
            count = most if axis == "step" else most * 2 // 3  # a third number a point, in the same room
            journal, column, start = (self.evals, "loss", 0) if name == HELDOUT else (self.metrics, name, first)
            x, stop = x_of[journal], len(journal.steps)
            if between:
                start, stop = max(start, bisect_right(x, between[0]) - 1), bisect_right(x, between[1]) + 1
            y = journal.column(column)
            curves[name] = _curve(journal.steps[start:stop], x[start:stop], y[start:stop], count, axis)
            if smooth and smooth[0] == name and journal is self.metrics:
                average = self._smoothed(name, smooth[1])[start:stop]
                curves[SMOOTH] = _curve(journal.steps[start:stop], x[start:stop], average, count // 2, axis)
        return {"cursor": self.cursor(), "whole": first == 0, "curves": curves}

    def _after(self, cursor: str) -> int:
        """Return the index of the first row after the cursor; 0 if the cursor is no longer valid."""
        step, _, _ = cursor.partition("@")
        if not step.isdigit():
            return 0
        index = bisect_right(self.metrics.steps, int(step))
        return index if index and _cursor(self.metrics, index - 1) == cursor else 0

    def _axis(self, journal: Journal, axis: Axis) -> array[float]:
        """Return the x value of each row: step, tokens seen so far, or hours since the first row."""
        if axis == "step":
            return journal.steps
        along = self._hours() if axis == "hours" else self._tokens()
        if journal is self.metrics:
            return along
        rows = [bisect_right(self.metrics.steps, step) for step in journal.steps]
        return array("d", [along[row - 1] if row else 0.0 for row in rows])

    def _tokens(self) -> array[float]:
        return self._running_sum("tokens", lambda rows, start: (finite(count) or 0.0 for count in rows[start:]))

    def _hours(self) -> array[float]:
        """By the trainer's clock; where that was put back, no time has passed."""

        def gaps(times: array[float], start: int) -> Iterator[float]:
            earlier = times[max(0, start - 1) :]
            if not start:
                yield 0.0
            yield from (max(finite(now - before) or 0.0, 0.0) / 3600 for before, now in pairwise(earlier))

        return self._running_sum("time", gaps)

    def _smoothed(self, name: str, span: int) -> array[float]:
        """The moving average of a column, of the latest column and span that were asked for: a look adds only the new rows."""
        sign = (name, span, self.metrics.rewritten)
        if self._averaged is None or self._averaged[0] != sign:
            self._averaged = (sign, MovingAverage(span))
        average = self._averaged[1]
        average.extend(self.metrics.column(name)[len(average.values) :])
        return average.values

    def _running_sum(self, name: str, terms: Callable[[array[float], int], Iterable[float]]) -> array[float]:
        """The sum of `terms(column, first row that is new)` up to each row, kept: a look adds only the rows that came since."""
        column = self.metrics.column(name)
        rewritten, sums = self._sums.get(name, (-1, array("d")))
        if rewritten != self.metrics.rewritten:
            sums = array("d")
        if len(sums) < len(column):
            start = len(sums)
            added = accumulate(terms(column, start), initial=sums[-1] if sums else 0.0)
            next(added)
            sums.extend(added)
        self._sums[name] = self.metrics.rewritten, sums
        return sums


class MovingAverage:
    """An exponential moving average with weight 1/span for the newest value and bias correction at the start
    (as in Adam, Kingma & Ba 2015). A value that is not finite leaves the average as it was."""

    def __init__(self, span: int) -> None:
        self.span = span
        self.values = array("d")
        self._average = self._weight = 0.0

    def extend(self, values: array[float]) -> None:
        average, weight, span = self._average, self._weight, self.span
        for value in values:
            if math.isfinite(value):
                average += (value - average) / span
                weight += (1 - weight) / span
            self.values.append(average / weight if weight else math.nan)
        self._average, self._weight = average, weight


def restarts(events: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return when and at which step a training resumed after an interruption, and why it had stopped."""
    found, ending = [], None
    for event in events:
        if event.get("kind") in _ENDINGS:
            ending = event
        elif event.get("kind") == "resume":
            why = ending.get("message") if ending else "the processes ended without a word (killed, or out of memory)"
            found.append({"time": event.get("time"), "step": event.get("step"), "why": why})
            ending = None
    return found


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    pairs: dict[str, Any] = {}
    for name, value in tree.items():
        pairs |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return pairs


def _cursor(journal: Journal, index: int) -> str:
    return f"{int(journal.steps[index])}@{journal.column('time')[index]!r}"


def _curve(steps: array[float], x: array[float], y: array[float], buckets: int, axis: Axis) -> dict[str, list[Any]]:
    drawn = [index for index in thin(y, buckets) if math.isfinite(x[index])]
    curve: dict[str, list[Any]] = {
        "step": [int(steps[index]) for index in drawn],
        "y": [float(f"{y[index]:.{_DIGITS}g}") for index in drawn],
    }
    if axis != "step":
        curve["x"] = [int(x[index]) if axis == "tokens" else round(x[index], 5) for index in drawn]
    return curve
