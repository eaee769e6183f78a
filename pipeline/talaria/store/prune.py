"""List the outputs of a store and delete those that are not used."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.files import MANIFEST
from talaria.store.remote import ADDRESS
from talaria.store.store import Store

DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """A finished output, or (`finished` false) the working folder of a run that is in progress or was killed."""

    stage: str
    path: Path
    bytes: int
    idle_days: float
    """Days since it was last made, used or written to."""
    finished: bool


def entries(store: Store) -> Iterator[Entry]:
    """Return everything in the store, finished outputs first."""
    now = time.time()
    for stage, path, _ in store.outputs():
        yield Entry(stage, path, _bytes(path), (now - (path / MANIFEST).stat().st_mtime) / DAY, finished=True)
    for path in sorted((store.root / ".work").glob("*/")):
        newest = max((file.stat().st_mtime for file in [path, *path.rglob("*")]), default=now)
        yield Entry(path.name.split("-")[0], path, _bytes(path), (now - newest) / DAY, finished=False)


def prune(store: Store, idle_days: float, *, dry_run: bool = False, remote: bool = False) -> list[Entry]:
    """Delete what was not used for `idle_days` days. Registered models stay, because the registry has its own hard links.

    `remote` also deletes the copies on object storage, which other machines may use.
    Raises UserError if there is no object storage.
    """
    if remote and store.remote is None:
        raise UserError(f"{ADDRESS} is not set, so there is no object storage to prune.")
    gone = [entry for entry in entries(store) if entry.idle_days >= idle_days]
    if not dry_run:
        for entry in gone:
            if remote and store.remote is not None:
                store.remote.remove(store.at_remote(entry.path))
            (entry.path / MANIFEST).unlink(missing_ok=True)  # first, so that a half-removed output is never reused
            shutil.rmtree(entry.path)
    return gone


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
