"""The model that is served now; where an alias is followed, its successor is loaded beside it and takes its place."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from talaria.common.errors import UserError
from talaria.common.redact import scrub
from talaria.serving.decoding.engine import Engine, Limits
from talaria.serving.decoding.loaded_model import LoadedModel, ServedSource

log = logging.getLogger(__name__)
_PATIENCE = 10
"""Polls after which a version that did not load is tried again: its files may have come by then."""
_CHECK_SECONDS = 600.0


@dataclass(frozen=True)
class Failure:
    """Why a version is not served that should be."""

    version: int | None
    reason: str


class AliasFollower:
    """Keeps one engine that answers. Requests take `engine`; when it raises Retired, they take it anew.

    While a successor loads there are two models in memory. An engine that is replaced finishes what it has taken.
    """

    def __init__(
        self,
        source: ServedSource,
        limits: Limits,
        *,
        poll: float = 10.0,
        on_swap: Callable[[int | None], None] = lambda version: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Loads the model and lets it answer once. `poll`: seconds between two looks at the alias.

        Raises DataError, TrackingError where that does not work: there is nothing to serve then.
        """
        self.source, self.limits, self.poll = source, limits, poll
        self.failure: Failure | None = None
        """Of the latest version; None where the one that is meant is the one that is served."""
        self.loading: int | None = None
        self._on_swap, self._on_failure = on_swap, on_failure
        self._attempts_from = 0.0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.engine = self._started(source.open())
        on_swap(self.version)

    @property
    def version(self) -> int | None:
        return self.engine.model.version

    @property
    def fingerprint(self) -> str:
        """Which model answers, for people and for logs."""
        return f"{self.source.model_id}-{self.version}" if self.version is not None else self.source.model_id

    def start(self) -> None:
        """Look at the alias from time to time, in a thread."""
        if self.source.follows:
            self._thread = threading.Thread(target=self._watch, name="follow-alias", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread and the engine; what was taken is finished."""
        self._stopping.set()
        self.engine.retire()

    def look(self) -> bool:
        """Take up the version that the alias means now, if it is another. Returns whether it was."""
        try:
            wanted = self.source.version()
        except UserError as error:
            self._failed(None, error)
            return False
        if wanted == self.version:
            self.failure = None
            return False
        if self.failure is not None and self.failure.version == wanted and time.monotonic() < self._attempts_from:
            return False
        self.loading = wanted
        try:
            self._swap(self.source.open())
        except Exception as error:  # whatever is wrong with the new one, the old one goes on
            self._attempts_from = time.monotonic() + _PATIENCE * self.poll
            self._failed(wanted, error)
            return False
        finally:
            self.loading = None
        return True

    def state(self) -> dict[str, Any]:
        """What /health tells."""
        failed = self.failure
        return {
            "model": self.source.model_id,
            "source": self.source.name,
            "version": self.version,
            "loading": self.loading,
            "failed": {"version": failed.version, "reason": failed.reason} if failed else None,
        }

    def _watch(self) -> None:
        while not self._stopping.wait(self.poll):
            self.look()

    def _swap(self, model: LoadedModel) -> None:
        engine, before = self._started(model), self.engine
        log.info("Version %s of %s takes over from version %s.", model.version, self.source.model_id, before.model.version)
        self.engine, self.failure = engine, None
        before.retire()
        self._on_swap(model.version)

    def _started(self, model: LoadedModel) -> Engine:
        """An engine that has answered. Raises DataError where the model does not."""
        engine = Engine(model, self.limits)
        if not engine.answers(_CHECK_SECONDS):
            engine.retire()
            raise UserError(f"{self.source.name}: version {model.version} was loaded and does not answer.")
        return engine

    def _failed(self, version: int | None, error: Exception) -> None:
        """Remember, and log it where it is news."""
        failure = Failure(version, scrub(str(error) or type(error).__name__))
        if failure != self.failure:
            log.error("%s is served on: %s", self.fingerprint, failure.reason)
            self._on_failure()
        self.failure = failure
