"""The trials of a sweep as a picture: held-out loss over the epochs, and, where one number was swept, over that number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from talaria.sweep.trial import Outcome

_LEGEND = 12
"""More trials than this are not named in the picture."""


def comparison(outcomes: Sequence[Outcome], best: Outcome | None, out: Path) -> bool:
    """Draw into `out` (PNG); return False if no trial was ever evaluated."""
    curves = [(outcome, outcome.curve) for outcome in outcomes]
    if not any(curve for _, curve in curves):
        return False
    from matplotlib.figure import Figure  # the plain class: no window system, no global state

    swept = _swept_number(outcomes)
    figure = Figure(figsize=(12 if swept else 8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots(1, 2 if swept else 1, squeeze=False)[0]
    for outcome, curve in curves:
        label = f"{outcome.number}: " + ", ".join(f"{name.partition('.')[2]}={value}" for name, value in outcome.settings.items())
        style = {"linewidth": 2.5 if outcome == best else 1, "linestyle": "--" if outcome.state == "stopped" else "-"}
        axes[0].plot([one.epoch for one in curve], [one.loss for one in curve], marker="o", markersize=3, label=label, **style)
    axes[0].set_xlabel("epoch")
    axes[0].set_ylabel("held-out loss (nats per supervised token)")
    axes[0].set_title("dashed: stopped early; thick: the best")
    if len(outcomes) <= _LEGEND:
        axes[0].legend(fontsize="small")
    if swept:
        _over_the_number(axes[1], swept, outcomes)
    for one in axes:
        one.grid(alpha=0.3)
    figure.savefig(out)
    return True


def _swept_number(outcomes: Sequence[Outcome]) -> str | None:
    """The setting that has several numbers, if it is the only one that differs."""
    names = {name for outcome in outcomes for name in outcome.settings}
    varied = [name for name in names if len({repr(outcome.settings.get(name)) for outcome in outcomes}) > 1]
    numbers = all(isinstance(outcome.settings.get(varied[0]), int | float) for outcome in outcomes) if len(varied) == 1 else False
    return varied[0] if numbers else None


def _over_the_number(axes: Any, name: str, outcomes: Sequence[Outcome]) -> None:
    for state, mark in (("done", "o"), ("stopped", "x")):
        found = [
            (outcome.settings[name], outcome.loss) for outcome in outcomes if outcome.state == state and outcome.loss is not None
        ]
        axes.plot([number for number, _ in found], [loss for _, loss in found], mark, label=state)
    if all(outcome.settings[name] > 0 for outcome in outcomes):
        axes.set_xscale("log")
    axes.set_xlabel(name)
    axes.legend(fontsize="small")
