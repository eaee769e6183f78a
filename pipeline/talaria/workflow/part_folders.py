"""The folders in which the parts of a stage's output wait for each other, in the store's working folder.

A part appears in one rename, so a retry does only what is missing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from talaria.common.files import MANIFEST
from talaria.common.locks import in_use
from talaria.config.schema import Config
from talaria.stages.table import STAGES, key_of
from talaria.store.store import Output, Store


@dataclass(frozen=True)
class PartFolders:
    """Of one stage's output and one number of parts."""

    root: Path
    key: str
    reads: tuple[Path, ...]

    @classmethod
    def of(cls, stage: str, shards: int, config: Config, store: Store, upstream: Mapping[str, Output]) -> PartFolders:
        key = key_of(STAGES[stage], config, {name: output.key for name, output in upstream.items()})[0]
        root = store.root / ".work" / f"{stage}-{key[:32]}-in-{shards}"
        return cls(root, key, tuple(output.path / MANIFEST for output in upstream.values()))

    def wanted(self, stage: str, store: Store, *, force: bool) -> bool:
        """Return whether parts have to be made: not where the output exists, and with `force` all of them anew."""
        if force:
            self.remove()
        return force or store.find(stage, self.key) is None

    def place(self, part: int, round: str = "") -> Path:
        return self.root / f"{round}{part:05d}"

    def fill(self, place: Path, work: Callable[[Path], object]) -> None:
        """Make the part by `work(folder)`, unless an earlier attempt has."""
        if place.is_dir():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with in_use(self.root, *self.reads), tempfile.TemporaryDirectory(dir=self.root) as scratch:
            folder = Path(scratch) / "part"
            folder.mkdir()
            work(folder)
            folder.rename(place)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
