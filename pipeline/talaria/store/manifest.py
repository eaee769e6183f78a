"""The manifests of a store: of one folder, and of all that led to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.files import MANIFEST, read_object
from talaria.store.store import Store

Manifests = dict[str, dict[str, Any]]


def store_of(folder: Path) -> Path | None:
    """The root of the store that a stage's folder, finished or in work, lies in."""
    folder = Path(folder).absolute()
    return next((parent for parent in folder.parents[:2] if (parent / ".work").is_dir()), None)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """A folder's manifest.json, where it is one of the store's."""
    manifest = read_object(Path(folder) / MANIFEST)
    return manifest if {"stage", "key", "files"} <= manifest.keys() else None


def manifests(inputs: Mapping[str, str | Path]) -> Manifests:
    """Stage -> manifest, for these folders and all that led to them; a folder outside a store adds nothing."""
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
