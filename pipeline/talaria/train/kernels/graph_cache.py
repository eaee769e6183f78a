"""Built attention graphs on disk, once a host: what one rank has built, the others and later starts read in a tenth of the time.

A graph lies under the digest of all that decides it. Before its bytes is a digest of them, as what is read is run on the GPU: a
file that was cut off or altered, or that another name was given, is not read. Where the disk takes nothing, graphs are built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from talaria.common.files import digest, user_cache

_FILES = 400
"""Graphs that are kept, of 0.1 MB each: those that nobody has read for longest make room. A run needs some twenty."""
_DIGEST = hashlib.sha256().digest_size


def read(key: dict[str, Any]) -> tuple[Any, bytes] | None:
    """Return what was kept under a key, (about, graph); None where that is nothing, or damaged."""
    path = _path(key)
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        return None
    head, _, graph = content[_DIGEST:].partition(b"\n")
    kept = json.loads(head)
    if digest(kept["key"]) != digest(key):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was of use
    return kept["about"], graph


def keep(key: dict[str, Any], about: Any, graph: bytes) -> None:
    """Keep a graph for later starts. key, about: JSON values."""
    content = json.dumps({"key": key, "about": about}).encode() + b"\n" + graph
    path = _path(key)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other ranks may write it too
    with contextlib.suppress(OSError):  # a full or read-only disk: the next start builds it again
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(hashlib.sha256(content).digest() + content)
        partial.replace(path)
        _make_room(path.parent)


def _path(key: dict[str, Any]) -> Path:
    return user_cache("attention") / digest(key)


def _make_room(folder: Path) -> None:
    """Remove what is too many, unfinished files of a writer that died among them."""
    by_age = sorted((entry.stat().st_mtime, entry.path) for entry in os.scandir(folder))
    for _, path in by_age[:-_FILES]:
        Path(path).unlink(missing_ok=True)
