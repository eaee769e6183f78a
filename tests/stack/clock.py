"""A service whose clock is wrong: it reads the time off by as much as a file says, and so does all that it starts.

libfaketime stands between the service and the kernel's clock. Monotonic time, sleeps, and the times of files, which the
store's file system gives, stay true: that is what a machine sees whose own clock is put forward or back.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.stack import image
from tests.stack.engine import USER, Engine


@dataclass(frozen=True)
class Clock:
    path: Path

    def put(self, seconds: int) -> None:
        """So far ahead of the true time (negative: behind it) from about a second later on."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(f"{seconds:+d}\n")
        os.replace(fresh, self.path)


@contextmanager
def of_its_own(engine: Engine, service: str) -> Iterator[Clock]:
    """The service restarted with such a clock, which is right at first; afterwards it is restarted with the machine's."""
    package = importlib.util.find_spec("libfaketime")
    assert package is not None
    assert package.origin is not None
    clock = Clock(engine.work / "bin" / f"clock-{service}")  # a folder that every service sees
    clock.put(0)
    environment = {
        "LD_PRELOAD": str(image.inside(Path(package.origin).parent / "vendor/libfaketime/src/libfaketime.so.1")),
        "FAKETIME_TIMESTAMP_FILE": f"/usr/local/image/{clock.path.name}",
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    try:
        with engine.overriding(service, environment):
            yield clock
    finally:
        for left in Path("/dev/shm").glob("*faketime_s*"):  # of processes that were killed
            if left.stat().st_uid == USER:
                left.unlink()
