"""Trainings in the terminal: `talaria runs`, `talaria watch RUN`, `talaria compare A B`.

    show_runs(root, console, *, limit=20) -> None
    watch(root, name, console, *, metric="loss", every=2.0, once=False) -> None
    compare(root, names, console, *, metric="loss", axis="step") -> None

`root` is the store's folder; a run is named by the beginning of its key or by the path of its folder. All raise UserError
for a run or a metric that is not there. `watch` returns when the run has ended, at once where the console is no terminal.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from talaria.cli.terminal_plot import Line, chart, number
from talaria.common.errors import UserError
from talaria.common.printable import printable
from talaria.runs.catalog import RunCatalog, find_run, resolve_run
from talaria.runs.folder import RunPath
from talaria.runs.history import CURVES, HELDOUT, SMOOTH, Axis, Training
from talaria.runs.summary import duration, summarize

_STYLES = {
    "running": "cyan",
    "done": "green",
    "failed": "red",
    "lost": "red",
    "unreadable": "red",
    "preempted": "yellow",
    "starting": "cyan",
}
_COLORS = {  # plotext's name -> rich's
    "blue+": "bright_blue",
    "orange+": "bright_yellow",
    "green+": "bright_green",
    "magenta+": "bright_magenta",
    "red+": "bright_red",
    "cyan+": "bright_cyan",
}
_PLOT, _RICH = tuple(_COLORS), tuple(_COLORS.values())
_POINTS = 400
_AROUND_CHART = 14  # lines of `watch` that are not the chart
_CHART_HEIGHT = 20


def show_runs(root: Path, console: Console, *, limit: int = 20) -> None:
    """Print a table of the store's runs, the latest first."""
    cards = RunCatalog(root).summaries(limit)
    if not cards:
        raise UserError(f"{root} holds no training yet; `talaria run CONFIG` starts one.")
    table = Table(box=None, header_style="dim", pad_edge=False)
    table.add_column("run", no_wrap=True, min_width=8)
    table.add_column("name", overflow="ellipsis")  # the one that gives way in a narrow terminal
    table.add_column("state", no_wrap=True)
    for heading in ("step", "loss", "held-out", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    now = time.time()
    for card in cards:
        step = f"{card['step']:,}" + (f"/{card['total_steps']:,}" if card["total_steps"] not in (None, card["step"]) else "")
        losses = (number(card["loss"]), number(card["heldout_loss"]))
        ago, left = duration(now - card["active"]), card["eta_seconds"]
        when = f"{ago} ago" if left is None else f"{duration(left)} left"
        table.add_row(card["key"][:8], Text(printable(card["name"] or "–")), _state(card), step, *losses, when)
    console.print(table)


def watch(root: Path, name: str, console: Console, *, metric: str = "loss", every: float = 2.0, once: bool = False) -> None:
    """Draw a run's curve and results repeatedly until it has ended."""
    training = _open(resolve_run(root, name), metric)
    frame, ended = _frame(training, metric, console)
    if console.is_terminal and not once:
        with Live(frame, console=console, screen=True, auto_refresh=False) as live:
            while not ended:
                time.sleep(every)
                moved = find_run(root, training.run.key)
                if moved and moved != training.run:  # published meanwhile
                    training = Training(moved)
                training.refresh()
                frame, ended = _frame(training, metric, console)
                live.update(frame, refresh=True)
    console.print(frame)


def compare(root: Path, names: Sequence[str], console: Console, *, metric: str = "loss", axis: Axis = "step") -> None:
    """Print the curves of several runs in one chart, and a table of their results and of the settings that differ."""
    if not 2 <= len(names) <= len(_COLORS):
        raise UserError(f"compare takes 2 to {len(_COLORS)} runs, got {len(names)}.")
    trainings = [_open(resolve_run(root, name), metric) for name in names]
    lines = [_line(training, metric, axis, color) for training, color in zip(trainings, _PLOT, strict=False)]
    console.print(Text(f"{metric} over {'steps' if axis == 'step' else axis}", style="bold"))
    console.print(chart(lines, console.width, _CHART_HEIGHT))
    console.print(_side_by_side(trainings))


def _open(run: RunPath, metric: str) -> Training:
    if metric not in CURVES:
        raise UserError(f"unknown metric {metric!r}; there are {', '.join(CURVES)}.")
    training = Training(run)
    training.refresh()
    return training


def _state(card: dict[str, Any]) -> Text:
    return Text(printable(card["state"]), style=_STYLES.get(card["state"], ""))


def _line(training: Training, metric: str, axis: Axis, color: str) -> Line:
    """Return the metric, smoothed over a hundredth of the run, because noise would fill the few lines of a terminal."""
    span = len(training.metrics.steps) // 100
    curves = training.series({metric: _POINTS}, axis=axis, smooth=(metric, span) if span > 1 else None)["curves"]
    curve = curves.get(SMOOTH) or curves[metric]
    return Line(curve.get("x") or curve["step"], curve["y"], color)


def _frame(training: Training, metric: str, console: Console) -> tuple[RenderableType, bool]:
    """Return what `watch` shows now, and whether the run has ended."""
    card, history = summarize(training.run, time.time()), training.history()
    lines, legend = [_line(training, metric, "step", _PLOT[0])], [(metric, _RICH[0])]
    if metric == "loss" and len(training.evals.steps):
        lines.append(_line(training, HELDOUT, "step", _PLOT[1]))
        legend.append(("  held-out", _RICH[1]))
    head = Text.assemble((printable(card["name"] or "–"), "bold"), "  ", _state(card), f"  {card['key'][:8]}")
    height = max(8, console.height - _AROUND_CHART)
    parts = [head, _progress(card), Text.assemble(*legend), chart(lines, console.width, height), _facts(card, history)]
    if card["reason"]:
        parts.append(Text(printable(str(card["reason"]), keep="\n"), style=_STYLES.get(card["state"], "")))
    return Group(*parts), card["state"] not in ("running", "starting")


def _progress(card: dict[str, Any]) -> Text:
    total = card["total_steps"]
    if not total:
        return Text(f"step {card['step']:,}")
    share = min(1.0, card["step"] / total)
    filled = round(30 * share)
    left = f"  {duration(card['eta_seconds'])} left" if card["eta_seconds"] is not None else ""
    quiet = f"  no sign of life for {duration(card['quiet_seconds'])}" if card["quiet_seconds"] is not None else ""
    bar = [("━" * filled, "cyan"), ("━" * (30 - filled), "bright_black")]
    return Text.assemble(*bar, f"  step {card['step']:,} of {total:,}  {share:.0%}{left}", (quiet, "yellow"))


def _facts(card: dict[str, Any], history: dict[str, Any]) -> RenderableType:
    latest, best = history["latest"], history["best_heldout"]
    wait = latest.get("data_wait_seconds")
    pairs = [
        ("loss", number(card["loss"])),
        ("held-out", number(card["heldout_loss"])),
        ("best", f"{best['loss']:.4f} at step {best['step']:,}" if best else "–"),
        ("lr", number(latest.get("lr"), ".2e")),
        ("grad norm", number(latest.get("grad_norm"), ".3f")),
        ("tokens/s", number(latest.get("tokens_per_second"), ",.0f")),
        ("mfu", number(latest.get("mfu"), ".1%")),
        ("data wait", "–" if wait is None else f"{1000 * wait:.1f} ms"),
        ("ranks", str(card["world_size"] or "–")),
        ("checkpoints", str(history["checkpoints"]["count"])),
    ]
    table = Table(box=None, show_header=False, pad_edge=False)
    for start in range(0, len(pairs), 4):
        table.add_row(*(Text.assemble((f"{name} ", "dim"), value) for name, value in pairs[start : start + 4]))
    restarts = [Text(printable(f"restarted at step {one['step']}: {one['why']}"), style="yellow") for one in history["restarts"]]
    return Group(table, *restarts)


def _side_by_side(trainings: Sequence[Training]) -> Table:
    histories = [training.history() for training in trainings]
    cards = [summarize(training.run, time.time()) for training in trainings]
    rows = {
        "state": [card["state"] for card in cards],
        "steps": [f"{card['step']:,}" for card in cards],
        "tokens": [f"{history['tokens']:,}" for history in histories],
        "loss": [number(card["loss"]) for card in cards],
        "best held-out": [number((history["best_heldout"] or {}).get("loss")) for history in histories],
        "tokens/s": [number(history["latest"].get("tokens_per_second"), ",.0f") for history in histories],
    }
    settings = [history["settings"] for history in histories]
    for name in dict.fromkeys(name for one in settings for name in one):
        values = [printable(str(one.get(name, "–"))) for one in settings]
        if len(set(values)) > 1:
            rows[printable(name)] = values
    table = Table(box=None, header_style="", pad_edge=False)
    table.add_column("")
    for card, color in zip(cards, _RICH, strict=False):
        table.add_column(Text.assemble(("● ", color), printable(card["name"] or "–"), " ", (card["key"][:8], "dim")))
    for name, values in rows.items():
        table.add_row(Text(name, style="dim"), *(Text(value) for value in values))
    return table
