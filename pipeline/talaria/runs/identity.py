"""The identity of a run: a digest of data, base model and the settings that change the result."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.common.files import MANIFEST, digest, read_object

if TYPE_CHECKING:
    from talaria.config.schema import Config

_SAMPLE = 1 << 20


def run_identity(config: Config, tokens: Path, base: Path) -> str:
    """Return the identity of a run; it does not depend on the rank or the number of ranks."""
    return digest({"train": config.train.key_fields(), "tokens": _folder(tokens), "base": _folder(base)})


def _folder(folder: Path) -> dict[str, str]:
    """Return an identity of a folder's content: from its manifest, else size, first and last MiB of each data file."""
    manifest = folder / MANIFEST
    if manifest.is_file():
        files = read_object(manifest).get("files")
        if files:
            return {name: file["sha256"] for name, file in files.items()}
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in (".arrow", ".safetensors", ".json") and path.is_file()]
    return {str(path.relative_to(folder)): _sampled(path) for path in found if path.name != MANIFEST}


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        seen = hashlib.sha256(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        seen.update(file.read(_SAMPLE))
    return f"{size}:{seen.hexdigest()}"
