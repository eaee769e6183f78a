"""Content-addressed stage outputs: `<store>/<stage>/<key>/`, whole or absent, reused when the key exists.

A key is the sha256 of everything that decides an output: stage name and version, the settings that the stage reads,
a fingerprint of what it takes from outside, and the keys of its inputs. The stage writes into `<store>/.work/<stage>-<key>-*`;
the folder is fsynced, gets its manifest.json and is renamed into place, so a crash leaves all of it or nothing and two runs
racing for one key do not meet: the second finds the place taken and drops its own copy.

Where the deployment names object storage (remote.py), finished outputs are copied there, and fetched from there where they are
missing here.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.common.files import MANIFEST, digest, disk_is_full, file_digest, fsync, write_atomically
from talaria.common.locks import locked
from talaria.store.remote import Remote, RemoteError

_VERSIONS_OF = ("polars", "pyarrow", "datasets", "tokenizers", "fastokens", "torch", "transformers", "accelerate")


@dataclass(frozen=True)
class Output:
    """A finished stage output."""

    path: Path
    key: str
    facts: dict[str, Any]
    seconds: float
    reused: bool = False

    def as_json(self) -> dict[str, Any]:
        """Return what an XCom carries: the path of the data, its key and facts, never the data."""
        return {"path": str(self.path), "key": self.key, "facts": self.facts, "seconds": self.seconds, "reused": self.reused}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Output:
        return cls(
            Path(value["path"]), value["key"], value.get("facts", {}), value.get("seconds", 0.0), value.get("reused", False)
        )


def output_key(stage: str, version: int, settings: Mapping[str, Any], inputs: Mapping[str, str], outside: Any = None) -> str:
    """Return the key of a stage's output. `inputs`: name -> key; `outside`: fingerprint of data from outside the store."""
    return digest({"stage": stage, "version": version, "settings": settings, "inputs": inputs, "outside": outside})


class Store:
    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.remote = Remote.from_environment()

    def place(self, stage: str, key: str) -> Path:
        return self.root / stage / key[:32]

    def work(self, stage: str, key: str) -> Path:
        """Return the working folder of a resumable stage (training), which survives crashes and is published by `publish`."""
        return self.root / ".work" / f"{stage}-{key[:32]}"

    def at_remote(self, folder: Path) -> str:
        """Return the name of a store folder on object storage."""
        return folder.relative_to(self.root).as_posix()

    def find(self, stage: str, key: str) -> Output | None:
        """Return the finished output of this key, from this store or from object storage, or None."""
        return self.here(stage, key) or self._fetch(stage, key)

    def here(self, stage: str, key: str) -> Output | None:
        """Return the finished output of this key in this store, or None."""
        place = self.place(stage, key)
        try:
            manifest = json.loads((place / MANIFEST).read_text())
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):  # a read-only store is no reason to fail
            os.utime(place / MANIFEST)  # the time of the last use, for pruning
        return Output(place, key, manifest["facts"], manifest["seconds"], reused=True)

    def run(
        self,
        stage: str,
        key: str,
        write: Callable[[Path], dict[str, Any]],
        *,
        described_by: Mapping[str, Any],
        resumable: bool = False,
        force: bool = False,
        unlisted: tuple[str, ...] = (),
    ) -> Output:
        """Reuse the output of `key`, or make it: `write(folder)` fills an empty folder and returns its facts.

        `resumable` keeps the working folder after a failure and hands it, as it was left, to the next attempt; of two runs
        that want the same output at once, the second waits for the first.
        `force` makes the output again and replaces the old one.
        `unlisted` names folders that the manifest leaves out, since they carry digests of their own.
        Raises UserError when the disk is full.
        """
        if not force and (found := self.find(stage, key)):
            return self._share(found)
        with self._working_folder(stage, key, resumable) as work:
            if not force and (found := self.here(stage, key)):  # another run made it while this one waited
                return found
            start = time.monotonic()
            try:
                facts = write(work)
                seconds = time.monotonic() - start
                made = self.publish(stage, key, work, facts, seconds, described_by, replace=force, unlisted=unlisted)
            except OSError as error:
                if disk_is_full(error):
                    raise UserError(
                        f"{self.root}: the disk is full while stage {stage} writes; free space or move the store."
                    ) from error
                raise
        return self._share(made, replace=force)

    @contextlib.contextmanager
    def _working_folder(self, stage: str, key: str, resumable: bool) -> Iterator[Path]:
        """Yield a new folder that is removed at the end; or, if resumable, the key's only folder, for one run at a time."""
        work = self.work(stage, key)
        work.parent.mkdir(parents=True, exist_ok=True)
        if resumable:
            with locked(work.with_suffix(".lock"), on_wait=_tell):
                work.mkdir(exist_ok=True)
                yield work
                with contextlib.suppress(OSError):  # has something in it, or was published
                    work.rmdir()
        else:
            work = Path(tempfile.mkdtemp(prefix=f"{work.name}-", dir=work.parent))
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def publish(
        self,
        stage: str,
        key: str,
        work: Path,
        facts: dict[str, Any],
        seconds: float,
        described_by: Mapping[str, Any],
        *,
        replace: bool = False,
        unlisted: tuple[str, ...] = (),
    ) -> Output:
        """Give a filled working folder its manifest and move it into place in one rename."""
        files = {str(path.relative_to(work)): path for path in sorted(work.rglob("*")) if path.is_file()}
        files.pop(MANIFEST, None)  # of an attempt that was killed while it published
        files = {name: path for name, path in files.items() if not name.startswith(unlisted)} if unlisted else files
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:  # hashing releases the interpreter lock
            digests = dict(zip(files, pool.map(file_digest, files.values()), strict=True))
        manifest = {
            "stage": stage,
            "key": key,
            **described_by,
            "facts": facts,
            "seconds": round(seconds, 3),
            "versions": dict(_versions()),
            "files": {name: {"bytes": path.stat().st_size, "sha256": digests[name]} for name, path in files.items()},
        }
        write_atomically(work / MANIFEST, json.dumps(manifest, indent=1))
        for path in files.values():
            fsync(path)
        fsync(work)
        place = self.place(stage, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        if replace and place.exists():
            aside = Path(tempfile.mkdtemp(dir=self.root / ".work"))
            place.rename(aside / "old")
            shutil.rmtree(aside)
        return self._move_in(work, stage, key) or Output(place, key, facts, manifest["seconds"])

    def _move_in(self, work: Path, stage: str, key: str) -> Output | None:
        """Rename a complete folder into place. If another run was faster, return its output."""
        place = self.place(stage, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.rename(place)
        except OSError:
            found = self.here(stage, key)
            if found is None:
                raise
            shutil.rmtree(work, ignore_errors=True)  # another run won the race with the same content
            return found
        fsync(place.parent)
        return None

    def _fetch(self, stage: str, key: str) -> Output | None:
        """Download the output from object storage and move it in; None if the stage has to run."""
        if self.remote is None:
            return None
        place = self.at_remote(self.place(stage, key))
        try:
            if (manifest := self.remote.manifest(place)) is None:
                return None
            if manifest.get("key") != key or not {"facts", "seconds"} <= manifest.keys():
                self.remote.forget(place)
                raise RemoteError(f"{self.remote.address}/{place} is another output's")
            with self._working_folder(stage, key, resumable=False) as work:
                self.remote.pull(place, manifest, work)
                write_atomically(work / MANIFEST, json.dumps(manifest, indent=1))
                fsync(work)
                self._move_in(work, stage, key)
        except RemoteError as error:
            logging.getLogger(__name__).warning("%s; stage %s makes its output here.", error, stage)
            return None
        return self.here(stage, key)

    def _share(self, output: Output, *, replace: bool = False) -> Output:
        """Upload an output that object storage lacks. If that fails, its next use tries again."""
        if self.remote is None:
            return output
        stage = output.path.parent.name
        place = self.at_remote(output.path)
        try:
            if replace or self.remote.manifest(place) is None:
                self.remote.push(place, output.path, json.loads((output.path / MANIFEST).read_text()))
                self.remote.remove(self.at_remote(self.work(stage, output.key)))  # what a resumable stage kept there
        except RemoteError as error:
            logging.getLogger(__name__).warning("%s; the copy of %s waits for its next use.", error, output.path)
        return output

    def outputs(self) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        """Yield every finished output: (stage, folder, manifest)."""
        for path in sorted(self.root.glob(f"[!.]*/*/{MANIFEST}")):
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile
                yield path.parent.parent.name, path.parent, json.loads(path.read_text())


def _tell(holder: str) -> None:
    logging.getLogger(__name__).warning("another run makes this output; waiting for it: %s", holder)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
