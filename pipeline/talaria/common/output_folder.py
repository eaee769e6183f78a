"""A folder that appears whole or not at all, for commands that write outside the store."""

from __future__ import annotations

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
from talaria.common.files import MANIFEST, disk_is_full, read_object
from talaria.common.locks import lock_itself


@dataclass(frozen=True)
class Work:
    """The folder under construction, and the stage that makes it."""

    path: Path
    made_by: str

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write manifest.json, which also tells a later run that the folder may be replaced."""
        (self.path / MANIFEST).write_text(json.dumps({"stage": self.made_by, **facts}, indent=1), encoding="utf-8")


@contextmanager
def replacing(output: Path, made_by: str) -> Iterator[Work]:
    """Yield a temporary folder beside `output` that replaces it when the block ends without an error.

    An earlier output of the same stage is replaced; anything else there is refused (UserError), and so is a full disk. What a
    killed run left beside it is removed: a run holds a lock on its folder for as long as it lives.
    """
    refuse_foreign(output.resolve(), made_by)
    with beside(output) as work:
        yield Work(work, made_by)
        _swap(work, output.resolve())


@contextmanager
def whole(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `output`, whatever is there, when the block ends without an error."""
    with _scratch(output) as work:
        yield work
        _swap(work, output.resolve())


@contextmanager
def beside(output: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `output`, on the same file system, and remove it when the block ends.

    Raises UserError if the disk is full or the folder cannot be written.
    """
    output = output.resolve()
    entered = False
    try:
        with _scratch(output) as work:
            entered = True
            yield work
    except OSError as error:
        if disk_is_full(error):
            raise UserError(f"{output}: the disk is full; free space or choose another place. Nothing was written.") from error
        if not entered:
            raise UserError(f"{output}: cannot write there: {error.strerror}.") from None
        raise


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a locked temporary folder beside `output`; first remove what killed runs left there."""
    output = output.resolve()
    work = output.with_name(f"{_prefix(output)}{uuid.uuid4().hex[:8]}")
    output.parent.mkdir(parents=True, exist_ok=True)
    sweep(output)
    work.mkdir()
    lock = lock_itself(work, wait=True)
    assert lock is not None  # nobody else knows the name yet
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def refuse_foreign(output: Path, made_by: str, option: str = "--output") -> None:
    """Raise UserError if something is at `output` that `made_by` did not make; `option` is how the user named it."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if read_object(output / MANIFEST).get("stage") != made_by:
        raise UserError(f"{output}: there is something there that `talaria {made_by}` did not make; choose another {option}.")


def sweep(output: Path) -> None:
    """Remove the temporary folders of runs that no longer live."""
    for stale in output.parent.glob(f"{glob.escape(_prefix(output))}*"):
        if (lock := lock_itself(stale, wait=False)) is not None:
            try:
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
