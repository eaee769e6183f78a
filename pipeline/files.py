"""What the store and its copy on object storage share: the manifest's name, and what both do with files."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
"""In a folder of the store it is what makes the folder whole."""


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file at no cost, or a copy where the file system has none (another disk).

    Raises FileNotFoundError where the source is gone.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
