"""threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


Out = TypeVar("Out")


def ordered(work: Callable[[T], Out], items: Iterable[T], threads: int, ahead: int = 1) -> Iterator[Out]:
    """work(item) for each item, by `threads` threads, in order, with at most `ahead` items more in flight.

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
