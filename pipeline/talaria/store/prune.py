"""List the outputs of a store and delete those that are not used."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.files import MANIFEST
from talaria.common.locks import Busy, lock_itself, locked
from talaria.store.remote import ADDRESS
from talaria.store.store import LOCK_OF_RUN, Store

DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """A finished output, or (`finished` false) what a run left that is under way, was cut off, or lost its manifest."""

    stage: str
    path: Path
    bytes: int
    idle_days: float
    """Days since it was last made, used or written to."""
    finished: bool


def entries(store: Store) -> Iterator[Entry]:
    """Yield all that the store holds, finished outputs first."""
    now = time.time()
    finished = {path for _, path, _ in store.outputs()}
    for path in sorted(finished):
        with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            yield Entry(path.parent.name, path, _bytes(path), (now - (path / MANIFEST).stat().st_mtime) / DAY, finished=True)
    remnants = [path for path in store.places() if path not in finished]
    for path in sorted([*remnants, *(store.root / ".work").glob("*/")]):
        newest = max((_mtime(file) for file in [path, *path.rglob("*")]), default=now)
        stage = path.name.split("-")[0] if path.parent.name == ".work" else path.parent.name
        yield Entry(stage, path, _bytes(path), (now - newest) / DAY, finished=False)


def prune(store: Store, idle_days: float, *, dry_run: bool = False, remote: bool = False) -> list[Entry]:
    """Remove what nothing has used for `idle_days` days, and return it. What a run works in or reads stays, however old.

    Registered models stay: the registry holds links of its own. `remote` removes the copies of the same on object storage too,
    which other machines may use. Raises UserError where there is no object storage, or for a number of days that is none.
    """
    if not (math.isfinite(idle_days) and idle_days >= 0):
        raise UserError(f"--days {idle_days:g}: should be 0 or more.")
    if remote and store.remote is None:
        raise UserError(f"{ADDRESS} is not set, so there is no object storage to prune.")
    gone = []
    for entry in entries(store):
        if entry.idle_days < idle_days:
            continue
        with _unused(entry) as unused:
            if unused and not dry_run:
                if remote and store.remote is not None:
                    store.remote.remove(store.at_remote(entry.path))
                store.remove(entry.path)
            gone += [entry] if unused else []
    return gone


@contextlib.contextmanager
def _unused(entry: Entry) -> Iterator[bool]:
    """Hold everything that a run which works in the folder, or reads it, would hold; yields False where one does."""
    with contextlib.ExitStack() as stack:
        try:
            if entry.path.parent.name == ".work":
                for lock in [entry.path.with_suffix(".lock"), *entry.path.glob(f"{LOCK_OF_RUN}*")]:
                    stack.enter_context(locked(lock, wait=0))
            for path, flags in ((entry.path / MANIFEST, os.O_RDWR), (entry.path, os.O_RDONLY)):
                if path.exists():
                    fd = lock_itself(path, flags, wait=False)
                    if fd is None:
                        raise Busy(f"{path} is in use")
                    stack.callback(os.close, fd)
        except Busy:
            yield False
            return
        yield True


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _bytes(folder: Path) -> int:
    """Return what removing the folder frees: nothing, if it is a link to elsewhere."""
    if folder.is_symlink():
        return 0
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total
