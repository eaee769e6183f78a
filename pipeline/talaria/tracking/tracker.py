"""Keeps MLflow up to date beside a training, and never in its way: the trainer writes JSON lines, a thread of the launcher
reads them and sends them on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from talaria.common.errors import UserError
from talaria.config.schema import Config
from talaria.store import manifest as manifest_module
from talaria.tracking.mlflow_client import TrackingError, tracking_uri
from talaria.tracking.run_log import RunLog, training_id, write_identity
from talaria.tracking.system_metrics import Meter, find_gpus

_LONGEST_WAIT = 60.0


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
        self._poll, self._flush_seconds = poll, flush_seconds
        self._stop, self._abandoned = threading.Event(), threading.Event()
        gpus = find_gpus(config.train.num_processes)
        self._meter = Meter(self.folder, gpus, machines=config.train.num_machines)
        address = uri or _address(self.folder)
        self._log = RunLog(config, inputs, self.folder, address, context) if address else None
        self._thread = threading.Thread(target=self._loop, args=(self._log,), name="talaria-tracker", daemon=True)

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
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._meter.stop()
        if self._log is None:
            return
        self._stop.set()
        self._thread.join(self._flush_seconds)
        self._abandoned.set()
        if left := self._log.unsent():
            self._say(f"MLflow: {left} steps are not sent yet; they go out when the run continues or is registered.")

    def _loop(self, log: RunLog) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # on Linux a thread's own: ranks on CPU go first
        failures, wait, last = 0, 0.0, False
        while not last:
            last = self._stop.wait(wait)
            try:
                self._send(log, last)
                if failures:
                    self._say("MLflow answers again; what was missed is sent.")
                failures, wait = 0, self._poll
            except TrackingError as error:
                if not failures:
                    self._say(f"{error} Training goes on; metrics are sent when MLflow answers.")
                failures, wait = failures + 1, min(self._poll * 2**failures, _LONGEST_WAIT)

    def _send(self, log: RunLog, last: bool) -> None:
        if not log.run_id:
            log.open(trains=True)
            log.running()
            if not self._abandoned.is_set():
                write_identity(log)
            self._say(f"MLflow run: {log.url or log.run_id}")
        log.push(until=self._abandoned.is_set)
        if last and not self._abandoned.is_set():
            log.close()


def catch_up(config: Config, inputs: Mapping[str, str | Path], uri: str, context: Mapping[str, str] | None = None) -> RunLog:
    """The run of a finished training folder (`inputs["train"]`), with everything sent. Raises TrackingError."""
    log = RunLog(config, inputs, Path(inputs["train"]), uri, context)
    log.open(trains=False)
    log.push()
    log.close()
    return log


def _address(folder: Path) -> str | None:
    try:
        return tracking_uri(manifest_module.store_of(folder))
    except UserError:
        return None
