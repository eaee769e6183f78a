"""Work that comes again and again: what it tells when it fails, and how it ends."""

from __future__ import annotations

import threading

from talaria.common.threads import Poller


class Away(Exception):
    """What the work says while its server is away."""


def test_a_row_of_failures_is_told_once_and_so_is_its_end() -> None:
    told: list[str] = []
    calls = iter([Away("away"), Away("still away"), None, None])
    done = threading.Event()

    def work(last: bool) -> None:
        outcome = next(calls, None)
        if outcome:
            raise outcome
        if "back" in told:
            done.set()

    poller = Poller(
        "test",
        work,
        every=0.001,
        errors=(Away,),
        on_failure=lambda error: told.append(str(error)),
        on_recovery=lambda: told.append("back"),
    )
    poller.start()
    assert done.wait(60)
    poller.stop(60)
    assert told == ["away", "back"]


def test_the_work_comes_once_more_at_the_end() -> None:
    seen: list[bool] = []
    poller = Poller("test", seen.append, every=3600, errors=(), on_failure=lambda error: None)
    poller.start()
    poller.stop(60)
    assert seen[-1] is True
    assert seen.count(True) == 1
    assert poller.abandoned


def test_nothing_is_told_of_work_that_nobody_waits_for() -> None:
    told: list[Exception] = []
    entered, leave = threading.Event(), threading.Event()

    def work(last: bool) -> None:
        entered.set()
        leave.wait(60)
        raise Away

    poller = Poller("test", work, every=0.001, errors=(Away,), on_failure=told.append)
    poller.start()
    assert entered.wait(60)
    poller.stop(0)
    leave.set()
    poller._thread.join(60)
    assert told == []
