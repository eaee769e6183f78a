"""Are the store's outputs what was written? Every file against the sha256 in its manifest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from talaria.common.files import MANIFEST, file_digest
from talaria.store.store import Store, whole_manifest


@dataclass(frozen=True)
class Damage:
    """An output that is not what was written; `aside`: where a repair has moved it."""

    path: Path
    what: str
    aside: Path | None = None


def verify(store: Store, *, repair: bool = False) -> Iterator[Damage]:
    """Yield the damaged outputs. `repair` moves each out of the way, for a person to look at until it is pruned."""
    for path in store.places():
        what = f"has no whole {MANIFEST}" if whole_manifest(path) is None else "; ".join(damages(path))
        if what:
            yield Damage(path, what, store.set_aside(path, "damaged") if repair else None)


def damages(folder: Path) -> list[str]:
    """Say what is wrong with the files that a folder's manifest lists; nothing where it has no manifest."""
    files = (whole_manifest(folder) or {"files": {}})["files"]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing releases the interpreter lock
        found = pool.map(lambda name: _damage(folder / name, files[name]["sha256"]), files)
        return [f"{name} {what}" for name, what in zip(files, found, strict=True) if what]


def _damage(path: Path, sha256: str) -> str | None:
    try:
        return None if file_digest(path) == sha256 else "does not have the sha256 of the manifest"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
