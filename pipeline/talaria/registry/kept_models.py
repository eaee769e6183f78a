"""The models that a training folder kept: which there are, what is in them, and that their files are what was written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.common.files import digest, file_digest
from talaria.registry.mlflow_model import ADDED, CARD, CODE, COMPONENTS
from talaria.runs.folder import MODEL, STATUS, RunFolder, exported, step_of

FINAL, KEPT = "final", "kept"


@dataclass(frozen=True)
class KeptModel:
    """One model of a training folder."""

    folder: Path
    step: int
    role: str
    """final: the one that training ended with; kept: exported on the way."""
    loss: float | None
    """Held-out loss; None if it was not measured."""
    files: Mapping[str, str]
    """File name in the folder -> sha256."""
    by_source: Mapping[str, float] = field(default_factory=dict)
    """Held-out loss of each source of a mixture."""

    @property
    def digest(self) -> str:
        """Return a digest of the model's files, without cards."""
        return _digest(self.files)

    def verify(self) -> None:
        """Raise DataError if a file differs from what training wrote."""
        now = hashes(self.folder)
        for name, expected in self.files.items():
            if now.get(name) != expected:
                state = "is missing" if name not in now else "does not have the sha256 of the manifest"
                raise DataError(f"{self.folder / name}: {state}; the file was damaged, so train again with --force.")


def kept_models(train: Path, report: Mapping[str, Any], manifest: Mapping[str, Any] | None) -> list[KeptModel]:
    """Return the models of a training folder by step, the final one last.

    An export at the last step is the final model under another name and comes once.
    Raises DataError if training has not finished.
    """
    status = RunFolder(train).status()
    if not status:
        raise DataError(f"{train}: not a training folder (no whole {STATUS}).")
    if status.get("state") != "done" or not (train / MODEL / "config.json").is_file():
        raise DataError(f"{train}: training has not finished (state {status.get('state')}); run it again to continue.")
    final = int(status["step"])
    measured = {int(export["step"]): export for export in report.get("exports", [])}
    measured[final] = report.get("tuned") or {}
    folders = {step_of(folder): folder for folder in exported(train)}
    folders[final] = train / MODEL
    return [
        KeptModel(
            folder,
            step,
            FINAL if step == final else KEPT,
            measured.get(step, {}).get("loss"),
            _recorded(folder, train, manifest),
            measured.get(step, {}).get("by_source", {}),
        )
        for step, folder in sorted(folders.items())
    ]


def candidate(models: list[KeptModel]) -> KeptModel:
    """Return the candidate for promotion: the lowest held-out loss, the later of equals; without losses, the final model."""
    measured = [(model.loss, -model.step, model) for model in models if model.loss is not None and math.isfinite(model.loss)]
    return min(measured, key=lambda entry: entry[:2])[2] if measured else models[-1]


def content_digest(folder: Path) -> str:
    """Return what `KeptModel.digest` was of the model in a version's folder, from the files as they are now."""
    outside = (f"{CODE}/", f"{COMPONENTS}/")
    return _digest({name: value for name, value in hashes(folder).items() if name not in ADDED and not name.startswith(outside)})


def _digest(files: Mapping[str, str]) -> str:
    return digest({name: value for name, value in sorted(files.items()) if name.rpartition("/")[2] != CARD})


def _recorded(folder: Path, train: Path, manifest: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the digests from the training folder's manifest; outside a store, digests of the files."""
    if manifest is None:
        return hashes(folder)
    prefix = f"{folder.relative_to(train)}/"
    listed = manifest["files"].items()
    return {name.removeprefix(prefix): entry["sha256"] for name, entry in listed if name.startswith(prefix)}


def hashes(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing releases the interpreter lock
        return {str(path.relative_to(folder)): value for path, value in zip(paths, pool.map(file_digest, paths), strict=True)}
