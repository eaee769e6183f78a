"""Count a running training through Airflow's own metrics: statsd or OpenTelemetry, whichever [metrics] names, or nothing.

Names, after Airflow's prefix: counters `talaria.training.steps`, `.tokens`, `.restarts`; gauges `.step`, `.loss`,
`.heldout_loss`, `.tokens_per_second`. Tags: dag_id and config; plain statsd has none, so all trainings share a name there.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

from airflow.sdk.configuration import conf
from airflow.sdk.observability import stats
from talaria.runs.columns import Journal
from talaria.runs.folder import EVALS, EVENTS, METRICS
from talaria.runs.jsonl import read_rows
from talaria.runs.summary import finite

PREFIX = "talaria.training"


class TrainingStats:
    """Sends what came since the last look. A step that a resumed training repeats counts once."""

    def __init__(self, folder: Path, tags: dict[str, str]) -> None:
        self.tags = tags
        self._metrics, self._evals = Journal(folder / METRICS), Journal(folder / EVALS)
        self._metrics.refresh()  # what an earlier attempt has sent
        self._until = self._metrics.steps[-1] if self._metrics.steps else 0.0
        self._restarts = _resumed(folder)

    def send(self, folder: Path) -> None:
        """`folder`: where the training lies now; a finished one has moved into the store."""
        self._metrics.path, self._evals.path = folder / METRICS, folder / EVALS
        self._metrics.refresh()
        self._evals.refresh()
        rows = range(bisect_right(self._metrics.steps, self._until), len(self._metrics.steps))
        if rows:
            tokens = self._metrics.column("tokens")
            stats.incr(f"{PREFIX}.steps", count=len(rows), tags=self.tags)
            stats.incr(f"{PREFIX}.tokens", count=int(sum(finite(tokens[row]) or 0.0 for row in rows)), tags=self.tags)
            self._until = self._metrics.steps[-1]
            stats.gauge(f"{PREFIX}.step", self._until, tags=self.tags)
            self._gauge("loss", self._metrics.last("loss"))
            self._gauge("tokens_per_second", self._metrics.last("tokens_per_second"))
            self._gauge("heldout_loss", self._evals.last("loss"))
        if (resumed := _resumed(folder)) > self._restarts:
            stats.incr(f"{PREFIX}.restarts", count=resumed - self._restarts, tags=self.tags)
            self._restarts = resumed

    def _gauge(self, name: str, value: float | None) -> None:
        if value is not None:
            stats.gauge(f"{PREFIX}.{name}", value, tags=self.tags)


def wanted() -> bool:
    """Return whether Airflow sends metrics anywhere."""
    return any(conf.getboolean("metrics", name, fallback=False) for name in ("statsd_on", "otel_on"))


def _resumed(folder: Path) -> int:
    return sum(event.get("kind") == "resume" for event in read_rows(folder / EVENTS))
