"""A folder that appears whole or not at all, for commands that write outside the store."""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.common.files import MANIFEST

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""No space, no quota, or a file larger than this process may write."""


@dataclass(frozen=True)
class Work:
    """The folder under construction."""

    path: Path
    made_by: str

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write manifest.json, which also tells a later run that the folder may be replaced."""
        (self.path / MANIFEST).write_text(json.dumps({"stage": self.made_by, **facts}, indent=1), encoding="utf-8")


@contextmanager
def replacing(output: Path, made_by: str) -> Iterator[Work]:
    """A temporary folder beside `output` that takes its place when the block ends without an error.

    An earlier output of the same stage is replaced; anything else there is refused (UserError), and so is a full disk. What a
    killed run left beside it is removed: a run holds a lock on its folder for as long as it lives.
    """
    refuse_foreign(output.resolve(), made_by)
    with beside(output) as work:
        yield Work(work, made_by)
        _swap(work, output.resolve())


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output`, on the same file system, for as long as the block lives.

    What a killed run left there is removed first. Raises UserError where the disk is full or the place cannot be written.
    """
    output = output.resolve()
    work = output.with_name(f"{_prefix(output)}{uuid.uuid4().hex[:8]}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        sweep(output)
        work.mkdir()
    except OSError as error:
        raise UserError(f"{output}: cannot write there: {error.strerror}.") from None
    lock = os.open(work, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield work
    except OSError as error:
        if error.errno in FULL:
            raise UserError(f"{output}: the disk is full; free space or choose another place. Nothing was written.") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def refuse_foreign(output: Path, made_by: str) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        stage = json.loads((output / MANIFEST).read_text(encoding="utf-8"))["stage"]
    except (OSError, ValueError, LookupError, TypeError):
        stage = None  # no manifest of ours
    if stage != made_by:
        raise UserError(f"{output}: there is something there that `talaria {made_by}` did not make; choose another --output.")


def sweep(output: Path) -> None:
    """Remove the temporary folders of runs that no longer live."""
    for stale in output.parent.glob(f"{glob.escape(_prefix(output))}*"):
        try:
            lock = os.open(stale, os.O_RDONLY)
        except FileNotFoundError:  # another run has swept it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(stale)
        finally:
            os.close(lock)


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _swap(work: Path, output: Path) -> None:
    if output.exists():
        old = work.with_name(f"{work.name}.old")
        output.rename(old)
        work.rename(output)
        shutil.rmtree(old)
    else:
        work.rename(output)
