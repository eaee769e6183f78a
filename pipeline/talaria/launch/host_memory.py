"""The folder in memory in which ranks leave their state for those that come after them, and its end.

It belongs to a launch: made before the ranks start, kept while they are started again, removed when the launch is over. Should
the launcher be killed, its lock falls free, and the next launch on this machine removes the folder, or takes up from it if it is
of the same training.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from talaria.common.files import digest
from talaria.common.locks import Busy, locked

MEMORY = Path("/dev/shm")  # noqa: S108 (the one place where Linux has files in memory; the folder is private, its name ours)
_PREFIX = "talaria-"


@contextlib.contextmanager
def host_memory(output: Path) -> Iterator[tuple[Path, int] | None]:
    """Yield the folder for the training in `output` and the descriptor of its lock; None where the machine has no such place."""
    if not (MEMORY.is_dir() and os.access(MEMORY, os.W_OK)):
        yield None
        return
    folder = MEMORY / f"{_PREFIX}{digest([os.getuid(), str(output)])[:16]}"
    _sweep(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # /dev/shm is everybody's
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(folder / "lock", wait=0))
        except Busy:  # `output` under another name of the same path
            yield None
            return
        stack.callback(shutil.rmtree, folder, ignore_errors=True)  # also where a launch ends by a stop or an error
        yield folder, lock


def _sweep(own: Path) -> None:
    """Remove what killed launches of this user left behind; memory that nobody would ever free."""
    for folder in MEMORY.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Busy):
            if folder != own and folder.stat().st_uid == os.getuid():
                with locked(folder / "lock", wait=0):
                    shutil.rmtree(folder)
