"""The commands that look at trainings."""

from __future__ import annotations

from typing import Annotated

import typer

from talaria.cli.app import DEFAULT_STORE, StoreDir, app
from talaria.runs.history import CURVES, Axis

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Beginning of a run's key, or the folder of `talaria train`.")]
RunNames = Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs to lay over one another.")]
Metric = Annotated[str, typer.Option(help=f"One of {', '.join(CURVES)}.")]


@app.command("runs")
def list_runs(
    store: StoreDir = DEFAULT_STORE,
    limit: Annotated[int, typer.Option(min=1, help="How many, the latest active first.")] = 20,
) -> None:
    """List the trainings in the store."""
    from rich.console import Console

    from talaria.cli import run_views

    run_views.show_runs(store, Console(), limit=limit)


@app.command()
def watch(
    run: RunName,
    store: StoreDir = DEFAULT_STORE,
    metric: Metric = "loss",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and leave.")] = False,
) -> None:
    """Follow a training: draw its curve and show its progress until it ends."""
    from rich.console import Console

    from talaria.cli import run_views

    run_views.watch(store, run, Console(), metric=metric, every=every, once=once)


@app.command()
def compare(
    runs: RunNames,
    store: StoreDir = DEFAULT_STORE,
    metric: Metric = "loss",
    axis: Annotated[Axis, typer.Option(help="What the curves are drawn over.")] = "step",
) -> None:
    """Overlay the curves of several runs, and show how their results and settings differ."""
    from rich.console import Console

    from talaria.cli import run_views

    run_views.compare(store, runs, Console(), metric=metric, axis=axis)
