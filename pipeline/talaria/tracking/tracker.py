"""Keeps MLflow up to date beside a training, and never in its way: the trainer writes JSON lines, a thread of the launcher
reads them and sends them on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.threads import Poller
from talaria.config.schema import Config
from talaria.store.manifest import store_of
from talaria.tracking.mlflow_client import TrackingError, tracking_uri
from talaria.tracking.run_log import RunLog, training_id, write_identity
from talaria.tracking.system_metrics import Meter, find_gpus


class Tracker:
    """Keeps the MLflow run of a training folder up to date while the body of the `with` runs.

    Nothing here waits for the server but the end, for at most `flush_seconds`. What it could not send is sent by the
    next Tracker of the folder, or at registration.
    """

    def __init__(
        self,
        config: Config,
        inputs: Mapping[str, str | Path],
        out_dir: Path,
        *,
        uri: str | None = None,
        context: Mapping[str, str] | None = None,
        on_line: Callable[[str], None] = print,
        poll: float = 5.0,
        flush_seconds: float = 20.0,
    ) -> None:
        self.folder = Path(out_dir)
        self._say = on_line
        self._flush_seconds = flush_seconds
        gpus = find_gpus(config.train.num_processes)
        self._meter = Meter(self.folder, gpus, machines=config.train.num_machines)
        address = uri or _address(self.folder)
        self._log = RunLog(config, inputs, self.folder, address, context) if address else None
        self._poller = Poller(
            "talaria-tracker",
            self._send,
            every=poll,
            errors=(TrackingError,),
            on_failure=lambda error: self._say(f"{error} Training goes on; metrics are sent when MLflow answers."),
            on_recovery=lambda: self._say("MLflow answers again; what was missed is sent."),
        )

    @property
    def run_id(self) -> str | None:
        """None until the server has answered once."""
        return (self._log.run_id or None) if self._log else None

    @property
    def url(self) -> str | None:
        return self._log.url if self._log else None

    def __enter__(self) -> Tracker:
        self._meter.start()
        if self._log is None:
            self._say("MLflow: MLFLOW_TRACKING_URI is not set, so this training is not logged there.")
        else:
            training_id(self.folder, create=True)
            self._poller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.stop()
        if self._log is None:
            return
        self._poller.stop(self._flush_seconds)
        if left := self._log.unsent():
            self._say(f"MLflow: {left} steps are not sent yet; they go out when the run continues or is registered.")

    def _send(self, last: bool) -> None:
        log = self._log
        assert log is not None  # else the poller was never started
        if not log.run_id:
            log.open(trains=True)
            log.running()
            if not self._poller.abandoned:
                write_identity(log)
            self._say(f"MLflow run: {log.url or log.run_id}")
        log.push(until=lambda: self._poller.abandoned)
        if last and not self._poller.abandoned:
            log.close()


def catch_up(config: Config, inputs: Mapping[str, str | Path], uri: str, context: Mapping[str, str] | None = None) -> RunLog:
    """Send everything that the run of a finished training folder (`inputs["train"]`) lacks. Raises TrackingError."""
    log = RunLog(config, inputs, Path(inputs["train"]), uri, context)
    log.open(trains=False)
    log.push()
    log.close()
    return log


def _address(folder: Path) -> str | None:
    try:
        return tracking_uri(store_of(folder))
    except UserError:
        return None
