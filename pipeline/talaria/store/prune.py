"""List the outputs of a store and delete those that neither a run nor a newer output needs."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from talaria.common.errors import UserError
from talaria.common.files import MANIFEST, read_object
from talaria.common.locks import Busy, lock_itself, locked
from talaria.store.remote import ADDRESS
from talaria.store.store import LOCK_OF_RUN, Store

DAY = 86400.0
IN_USE = "a run works in it or reads it"
NEEDED = "a run at work, or what was made from it and stays, needs it"


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
            yield Entry(path.parent.name, path, _bytes(path), _idle_days(path), finished=True)
    remnants = [path for path in store.places() if path not in finished]
    for path in sorted([*remnants, *(store.root / ".work").glob("*/")]):
        newest = max((_mtime(file) for file in [path, *path.rglob("*")]), default=now)
        stage = path.name.split("-")[0] if path.parent.name == ".work" else path.parent.name
        yield Entry(stage, path, _bytes(path), (now - newest) / DAY, finished=False)


def prune(
    store: Store,
    idle_days: float,
    *,
    dry_run: bool = False,
    remote: bool = False,
    on_kept: Callable[[Entry, str], None] = lambda entry, why: None,
) -> list[Entry]:
    """Remove what nothing has used for `idle_days` days, and return it.

    However old, what a run works in, reads or will read stays, and so does what a younger output was made from; `on_kept` hears
    of it, and why. Registered models stay: the registry holds links of its own. `remote` removes the copies of the same on object
    storage too, which other machines may use. Raises UserError where there is no object storage, or for a number of days that
    is none.
    """
    if not (math.isfinite(idle_days) and idle_days >= 0):
        raise UserError(f"--days {idle_days:g}: should be 0 or more.")
    if remote and store.remote is None:
        raise UserError(f"{ADDRESS} is not set, so there is no object storage to prune.")
    gone = []
    every = list(entries(store))
    needed = _needed(store, every, idle_days)
    for entry in every:
        if entry.idle_days < idle_days:
            continue
        with _unused(entry) as unused, contextlib.suppress(FileNotFoundError):  # pruned meanwhile
            if not unused or entry.path in needed:
                on_kept(entry, NEEDED if unused else IN_USE)
            elif not entry.finished or _idle_days(entry.path) >= idle_days:  # else used meanwhile
                if not dry_run:
                    _remove(store, entry.path, remote=remote)
                gone.append(entry)
    return gone


def _remove(store: Store, folder: Path, *, remote: bool) -> None:
    if remote and store.remote is not None:
        store.remote.remove(store.at_remote(folder))
    store.remove(folder)


def _needed(store: Store, every: Iterable[Entry], idle_days: float) -> set[Path]:
    """Return outputs that have to stay though nothing holds them now.

    Of a run at work, or of one that may go on, a training of weeks say, which holds its tokens and its base: all that these were
    made from, which evaluation and registration read, and what was made from nothing else, as the report and the other trials
    of a sweep were. Of an output that stays: what it was made from, which the next stage of its run reads.
    """
    made_from = {entry.path: _made_from(store, entry.path) for entry in every}
    young = {entry.path for entry in every if entry.idle_days < idle_days}
    at_work = {entry.path for entry in every if (_in_use(entry) if entry.path not in young else not entry.finished)}
    run = _with_sources(at_work, made_from)
    beside = {path for path, sources in made_from.items() if sources and sources <= run}
    return _with_sources(run | beside | young, made_from)


def _made_from(store: Store, folder: Path) -> set[Path]:
    """The outputs that a folder's manifest names as its inputs; a training has one from its beginning."""
    inputs = read_object(folder / MANIFEST).get("inputs")
    return {store.place(stage, str(key)) for stage, key in inputs.items()} if isinstance(inputs, dict) else set()


def _with_sources(paths: Iterable[Path], made_from: Mapping[Path, set[Path]]) -> set[Path]:
    found: set[Path] = set()
    waiting = list(paths)
    while waiting:
        if (path := waiting.pop()) not in found:
            found.add(path)
            waiting += made_from.get(path, ())
    return found


def _in_use(entry: Entry) -> bool:
    with _unused(entry) as unused:
        return not unused


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


def _idle_days(output: Path) -> float:
    return (time.time() - (output / MANIFEST).stat().st_mtime) / DAY


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
