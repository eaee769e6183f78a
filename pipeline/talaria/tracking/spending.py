"""Add up what trainings cost, from the GPU-hours in MLflow and the price of a GPU-hour."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from talaria.tracking.mlflow_client import connect, plain_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

GPU_HOURS = "cost/gpu_hours"
_PAGE = 1000


@dataclass(frozen=True)
class Spending:
    """What a model's trainings cost; `unpriced` GPU-hours were trained without `registry.gpu_hour_price`."""

    trainings: int = 0
    gpu_hours: float = 0.0
    cost: float = 0.0
    unpriced: float = 0.0

    def plus(self, gpu_hours: float, price: float | None) -> Spending:
        return Spending(
            self.trainings + 1,
            self.gpu_hours + gpu_hours,
            self.cost + gpu_hours * (price or 0.0),
            self.unpriced + (gpu_hours if price is None else 0.0),
        )


def spending(uri: str, *, days: float) -> dict[str, Spending]:
    """Return registered model -> what its trainings of the last `days` days cost, running ones up to now.

    A training counts at the price that its own configuration named.
    """
    client = connect(uri)
    found: dict[str, Spending] = {}
    with plain_errors(uri):
        for run in _runs(client, since=time.time() - days * 86400):
            if GPU_HOURS in run.data.metrics:
                params = run.data.params
                name = _given(params.get("registry.model")) or params.get("name", "?")
                price = _given(params.get("registry.gpu_hour_price"))
                hours = run.data.metrics[GPU_HOURS]
                found[name] = found.get(name, Spending()).plus(hours, float(price) if price else None)
    return found


def _given(param: str | None) -> str | None:
    """A setting as MLflow keeps it, where absent is the text "None"."""
    return None if param == "None" else param


def _runs(client: MlflowClient, since: float) -> Iterator[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    token = None
    while True:
        page = client.search_runs(
            experiments, f"attributes.start_time >= {int(since * 1000)}", max_results=_PAGE, page_token=token
        )
        yield from page
        if not (token := page.token):
            return
