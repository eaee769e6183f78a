"""A signal to whoever runs a command stops the command, and is not lost where the command has ended meanwhile."""

import signal
from collections.abc import Iterator

import pytest
from talaria.process.supervisor import Stop, stopped_by_signals


def interrupted(stop: Stop, error: type[Exception] | None = None) -> None:
    with stopped_by_signals(stop):
        signal.raise_signal(signal.SIGINT)
        if error:
            raise error


@pytest.fixture
def python_hears_interrupts() -> Iterator[None]:
    """A shell that starts a job in the background has it ignore SIGINT, and so do the tests that it runs."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_an_interrupt_that_comes_too_late_for_the_command_is_for_what_follows(python_hears_interrupts: None) -> None:
    stop, former = Stop(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(stop)
    assert stop.requested
    assert signal.getsignal(signal.SIGINT) is former


def test_an_interrupt_that_stopped_the_command_is_told_by_the_command(python_hears_interrupts: None) -> None:
    with pytest.raises(LookupError):
        interrupted(Stop(), LookupError)
