"""Stop signals, hangs and non-finite numbers, which end a run."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from talaria.common.errors import UserError
from talaria.train.telemetry.console import say

EXIT_HANG = 70
_SET_UP_SECONDS = 600.0


class Alive(Protocol):
    """Callback with a description of what a rank is doing, called whenever it makes progress."""

    def __call__(self, doing: str | None = None) -> None: ...


class NotFinite(ArithmeticError):
    """The loss or the gradient norm is NaN or infinite. Raised on every rank, before the optimiser step."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


class OutOfMemory(UserError):
    """The device's memory does not hold a step; the message says which settings to lower."""

    def __init__(self, max_tokens: int, checkpointing: str, detail: str) -> None:
        super().__init__(
            f"out of memory on the device: lower train.max_tokens_per_device (now {max_tokens}) or raise "
            f"train.activation_checkpointing (now {checkpointing}; selective or full store less) ({detail})."
        )


class StopSignal:
    """Record SIGTERM, SIGINT or SIGUSR1. One rank's signal is enough: the step's sums carry it to the others."""

    def __init__(self) -> None:
        self.name: str | None = None

    def listen(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._heard)
        return self

    def _heard(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name


class Watchdog:
    """End this process, with the stacks of all threads on stderr, if `alive` was not called for `timeout` seconds.

    Before the first step, while a model is read and compiled, the limit is 10 minutes if `timeout` is less.

    A rank that stops leaves the others waiting for it in a collective; each of them ends so, and the launcher ends the rest.
    Should Python itself be stuck (a native call that keeps the interpreter lock), faulthandler's own thread ends the
    process a little later.
    """

    def __init__(self, timeout: float, on_hang: Callable[[str], None]) -> None:
        self.timeout, self.on_hang = max(timeout, _SET_UP_SECONDS), on_hang
        self._later = timeout
        self._last = time.monotonic()
        self._doing = "starting"
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> Watchdog:
        self.alive("starting")
        self._thread.start()
        return self

    def stepping(self) -> None:
        """Tell the watchdog that set-up is over: from now on the limit is `timeout`."""
        self.timeout = self._later
        self.alive()

    def alive(self, doing: str | None = None) -> None:
        self._last = time.monotonic()
        self._doing = doing or self._doing
        faulthandler.dump_traceback_later(self.timeout * 1.5 + 5, exit=True)

    def stop(self) -> None:
        self._closed.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._later / 10)):
            if time.monotonic() - self._last > self.timeout:
                reason = f"no progress for {self.timeout:g} seconds (train.hang_timeout) while {self._doing}"
                say(f"pid {os.getpid()}: {reason}; stacks of all threads follow", sys.stderr)
                faulthandler.dump_traceback(all_threads=True)
                self.on_hang(reason)
                sys.stderr.flush()
                os._exit(EXIT_HANG)
