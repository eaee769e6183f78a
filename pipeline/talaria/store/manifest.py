"""Read the manifests of a store: of one folder, or of a folder and everything it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.files import MANIFEST, read_object
from talaria.store.store import Store

Manifests = dict[str, dict[str, Any]]


def store_of(folder: Path) -> Path | None:
    """Return the root of the store that contains a stage's folder, finished or in progress; None outside a store."""
    folder = Path(folder).absolute()
    return next((parent for parent in folder.parents[:2] if (parent / ".work").is_dir()), None)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return a folder's manifest.json if the folder belongs to a store."""
    manifest = read_object(Path(folder) / MANIFEST)
    return manifest if {"stage", "key", "files"} <= manifest.keys() else None


def manifests(inputs: Mapping[str, str | Path]) -> Manifests:
    """Return stage -> manifest for these folders and all their inputs; a folder outside a store adds nothing."""
    found: Manifests = {}
    waiting = [(name, Path(folder)) for name, folder in inputs.items()]
    while waiting:
        name, folder = waiting.pop()
        manifest = read_manifest(folder)
        if name in found or manifest is None:
            continue
        found[name] = manifest
        root = store_of(folder)
        if root is not None:
            waiting += [(stage, Store(root).place(stage, key)) for stage, key in manifest.get("inputs", {}).items()]
    return found
