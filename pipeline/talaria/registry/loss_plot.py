"""The loss curves as a picture, for MLflow's artifacts."""

from __future__ import annotations

from pathlib import Path

from talaria.runs.columns import Journal, thin
from talaria.runs.folder import EVALS, METRICS

_POINTS = 1000


def loss_curves(train: Path, out: Path) -> bool:
    """Draw training and held-out loss over the steps into `out` (PNG); return False if there is nothing to draw."""
    metrics, evals = Journal(train / METRICS), Journal(train / EVALS)
    metrics.refresh()
    evals.refresh()
    if not len(metrics.steps):
        return False
    from matplotlib.figure import Figure  # the plain class: no window system, no global state

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    losses = metrics.column("loss")
    places = thin(losses, _POINTS)
    axes.plot([metrics.steps[i] for i in places], [losses[i] for i in places], linewidth=1, label="training")
    if len(evals.steps):
        axes.plot(evals.steps, evals.column("loss"), marker="o", label="held out")
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss (nats per supervised token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(out)
    return True
