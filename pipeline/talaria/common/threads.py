"""Threads: work on many items in order, and work that comes again and again until it is stopped."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")
_LONGEST_WAIT = 60.0  # seconds


def ordered(work: Callable[[In], Out], items: Iterable[In], threads: int, ahead: int = 1) -> Iterator[Out]:
    """Yield work(item) for each item, done by `threads` threads, in order, with at most `ahead` items more in flight.

    An error of any item is raised here, and what is under way is waited for.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
        pending: deque[Future[Out]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) > threads + ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class Poller:
    """A background thread that does `work(last)` every `every` seconds, and once more, `last` being true, when it is stopped.

    While `work` raises one of `errors` the wait doubles each time, up to a minute. The first failure of a row is told to
    `on_failure`, the end of the row to `on_recovery`; neither is told anything once the thread is abandoned.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[bool], None],
        *,
        every: float,
        errors: tuple[type[Exception], ...],
        on_failure: Callable[[Exception], None],
        on_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        self._work, self._every, self._errors = work, every, errors
        self._on_failure, self._on_recovery = on_failure, on_recovery
        self._stop, self._abandoned = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    @property
    def abandoned(self) -> bool:
        """Return whether nobody waits any more: `work` should then end soon and change nothing that others read."""
        return self._abandoned.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self, patience: float) -> None:
        """Have `work` done once more, wait for it for `patience` seconds, and abandon it."""
        self._stop.set()
        self._thread.join(patience)
        self._abandoned.set()

    def abandon(self) -> None:
        self._abandoned.set()

    def _loop(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # on Linux a thread's own: ranks on CPU go first
        failures, wait, last = 0, 0.0, False
        while not last:
            last = self._stop.wait(wait)
            try:
                self._work(last)
                if failures and not self.abandoned:
                    self._on_recovery()
                failures, wait = 0, self._every
            except self._errors as error:
                if not failures and not self.abandoned:
                    self._on_failure(error)
                failures, wait = failures + 1, min(self._every * 2**failures, _LONGEST_WAIT)
