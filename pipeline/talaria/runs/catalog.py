"""The trainings of a store: `.work/train-<key>` while they run or after they failed, `train/<key>` once published."""

from __future__ import annotations

import re
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.runs.folder import EVALS, EVENTS, METRICS, STATUS, RunPath
from talaria.runs.history import Training
from talaria.runs.summary import last_activity, summarize, unreadable

_KEY = re.compile(r"[0-9a-f]{32}")
_WORK = "train-"
_KEPT_OPEN = 16


def list_runs(root: Path) -> list[RunPath]:
    """Return every training of the store at `root`, the latest active first. A rerun in progress hides what it will replace."""
    found = {
        path.name: RunPath(path.name, path, finished=True) for path in (root / "train").glob("*/") if _KEY.fullmatch(path.name)
    }
    for path in (root / ".work").glob(f"{_WORK}*/"):
        key = path.name.removeprefix(_WORK)
        if _KEY.fullmatch(key):
            found[key] = RunPath(key, path, finished=False)
    return sorted(found.values(), key=last_activity, reverse=True)


def find_run(root: Path, key: str) -> RunPath | None:
    """Return the training with exactly this key; None for anything that is not a key (a path, for example)."""
    if not _KEY.fullmatch(key):
        return None
    for folder, finished in ((root / ".work" / f"{_WORK}{key}", False), (root / "train" / key, True)):
        if folder.is_dir():
            return RunPath(key, folder, finished)
    return None


def resolve_run(root: Path, name: str) -> RunPath:
    """Return the training that a user names: by the beginning of its key, or by the path of a training folder.

    Raises UserError when there is none, or more than one.
    """
    folder = Path(name)
    if any((folder / file).is_file() for file in (STATUS, METRICS)):
        return RunPath(folder.absolute().name, folder, finished=False)
    found = [run for run in list_runs(root) if run.key.startswith(name)] if name else []
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name!r} begins the keys of {len(found)} runs in {root}; give more of the key.")
    raise UserError(f"no run in {root} has a key that begins with {name!r}; `talaria runs` lists them.")


class RunCatalog:
    """The trainings of one store, with a cache of what was read. Safe to share between threads."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[RunPath, Training] = OrderedDict()
        self._summaries: dict[RunPath, tuple[Any, dict[str, Any]]] = {}

    def summaries(self, limit: int) -> list[dict[str, Any]]:
        """Return summaries of the `limit` latest runs (see `summarize`)."""
        now = time.time()
        return [self.summary(run, now) for run in list_runs(self.root)[:limit]]

    def summary(self, run: RunPath, now: float) -> dict[str, Any]:
        """Return a run's summary, read again only if its files changed or if time alone can change it."""
        signs = [_sign(run.folder / name) for name in (METRICS, STATUS, EVALS, EVENTS)]
        cached = self._summaries.get(run)
        if cached and cached[0] == signs and cached[1]["state"] not in ("running", "starting"):
            return cached[1]
        try:
            card = summarize(run, now)
        except OSError as error:
            return unreadable(run, error)  # the others are shown all the same
        self._summaries[run] = (signs, card)
        return card

    def open(self, run: RunPath) -> Training:
        """Return the run's history from the cache; the least recently used are dropped."""
        with self._lock:
            training = self._open.pop(run, None) or Training(run)
            self._open[run] = training
            if len(self._open) > _KEPT_OPEN:
                self._open.popitem(last=False)
            return training


def _sign(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
