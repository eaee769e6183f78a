"""Summarise a training with a few small reads of its folder, whatever its length (docs/architecture.md lists the files)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from talaria.common.files import read_object
from talaria.runs.folder import CONFIG, EVALS, EVENTS, METRICS, MLFLOW, STATUS, RunPath
from talaria.runs.jsonl import sample, tail

SPARK_POINTS = 32
_QUIET_SECONDS = 120.0
_QUIET_STEPS = 10
_QUIET_SHARE = 0.5  # of the hang timeout, before the first step: loading and compiling take their time
_DEFAULT_HANG_SECONDS = 600.0


def summarize(run: RunPath, now: float) -> dict[str, Any]:
    """Return the summary of a run. Times are Unix seconds; unknown values are None.

    `state` is the trainer's own (running, done, preempted, failed) or `starting` before it said anything, or `lost` when
    it claims to run but has been silent for longer than it would let itself hang. `quiet_seconds` is the silence of a
    running one once it is worth a remark.
    """
    status = read_object(run.folder / STATUS)
    config, mlflow = read_object(run.folder / CONFIG), read_object(run.folder / MLFLOW)
    rows = tail(run.folder / METRICS)
    last = rows[-1] if rows else {}
    evals = tail(run.folder / EVALS)
    seconds = step_seconds(rows)
    active = last_activity(run)
    step = max(_int(status.get("step")) or 0, _int(last.get("step")) or 0)
    total = _int(status.get("total_steps"))
    state = _state(run, status, config, now - active)
    running = state == "running"
    patience = max(_QUIET_SECONDS, _QUIET_STEPS * (seconds or 0)) if rows else _QUIET_SHARE * _hang_timeout(config)
    return {
        "key": run.key,
        "name": config.get("name") if isinstance(config.get("name"), str) else None,
        "state": state,
        "reason": status.get("reason"),
        "step": step,
        "total_steps": total,
        "epoch": finite(last.get("epoch")),
        "loss": finite(last.get("loss")),
        "heldout_loss": finite(evals[-1].get("loss")) if evals else None,
        "step_seconds": seconds,
        "eta_seconds": seconds * (total - step) if running and seconds and total else None,
        "active": active,
        "quiet_seconds": now - active if running and now - active > patience else None,
        "world_size": _int(status.get("world_size")),
        "mlflow_run_id": mlflow.get("run_id"),
        "mlflow_url": mlflow.get("url"),
        "dag_run": status.get("airflow"),
        "spark": [rounded(row.get("loss")) for row in sample(run.folder / METRICS, SPARK_POINTS)],
    }


def unreadable(run: RunPath, error: OSError) -> dict[str, Any]:
    """Return the card of a run whose files cannot be read (no permission, a damaged disk)."""
    numbers = ("total_steps", "epoch", "loss", "heldout_loss", "step_seconds", "eta_seconds", "quiet_seconds", "world_size")
    return {
        **dict.fromkeys((*numbers, "name", "dag_run", "mlflow_run_id", "mlflow_url")),
        "key": run.key,
        "state": "unreadable",
        "reason": f"{run.folder} cannot be read: {error.strerror}.",
        "step": 0,
        "active": last_activity(run),
        "spark": [],
    }


def progress_line(card: Mapping[str, Any]) -> str:
    """Say how a training is doing in a line: 'step 120 of 600, loss 1.2345, held-out loss 1.3000, 1 h 2 min left'."""
    step = f"step {card['step']:,}"
    parts = [f"{step} of {card['total_steps']:,}" if card["total_steps"] else step, *losses(card)]
    if card["state"] != "running":
        parts.append(card["state"])
    elif card["eta_seconds"] is not None:
        parts.append(f"{duration(card['eta_seconds'])} left")
    return ", ".join(parts)


def losses(card: Mapping[str, Any]) -> list[str]:
    """Say the losses that are known: ['loss 1.2345', 'held-out loss 1.3000']."""
    named = (("loss", "loss"), ("heldout_loss", "held-out loss"))
    return [f"{name} {card[key]:.4f}" for key, name in named if card[key] is not None]


def duration(seconds: float | None) -> str:
    """Say a number of seconds in the two largest units that matter."""
    if seconds is None:
        return "–"
    whole = max(0, round(seconds))
    for size, unit, smaller, small_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    return f"{whole} s"


def _state(run: RunPath, status: dict[str, Any], config: dict[str, Any], silent: float) -> str:
    state = status.get("state")
    if run.finished or state == "done":
        return "done"
    if state in (None, "running") and silent > _hang_timeout(config):
        return "lost"
    return state if isinstance(state, str) else "starting"


def _hang_timeout(config: dict[str, Any]) -> float:
    """Return the run's train.hang_timeout in seconds."""
    train = config.get("train")
    return (finite(train.get("hang_timeout")) if isinstance(train, dict) else None) or _DEFAULT_HANG_SECONDS


def last_activity(run: RunPath) -> float:
    """Return when the training last wrote, in Unix seconds of the file system's clock."""
    times = [_mtime(run.folder / name) for name in (METRICS, STATUS, EVENTS)]
    return max(times) or _mtime(run.folder)


def step_seconds(rows: list[dict[str, Any]]) -> float | None:
    """Return the median seconds from step to step over `rows`, which a checkpoint or a restart does not distort."""
    times = [time for row in rows if (time := finite(row.get("time"))) is not None]
    steps = [later - earlier for earlier, later in pairwise(times)]
    if steps:
        return statistics.median(steps)
    return finite(rows[-1].get("seconds")) if rows else None


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def rounded(value: Any) -> float | None:
    """Round a number to the digits that a small drawing can show."""
    number = finite(value)
    return None if number is None else float(f"{number:.4g}")


def finite(value: Any) -> float | None:
    """Return a finite number, else None, because JSON for browsers has no NaN."""
    try:
        return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None
    except OverflowError:  # a whole number beyond any float
        return None
