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
import re
import shutil
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.common.files import MANIFEST, digest, disk_is_full, file_digest, fsync, read_object, write_atomically
from talaria.common.locks import in_use, locked
from talaria.store.remote import Remote, RemoteError

LOCK_OF_RUN = "lock"
"""File in a resumable stage's working folder that whatever works there holds; machine N's is `lock.N`."""
_KEY = re.compile(r"[0-9a-f]{32}")
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
        manifest = whole_manifest(place)
        if manifest is None:
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
        reads: Collection[Path] = (),
    ) -> Output:
        """Reuse the output of `key`, or make it: `write(folder)` fills an empty folder and returns its facts.

        `resumable` keeps the working folder after a failure and hands it, as it was left, to the next attempt; of two runs
        that want the same output at once, the second waits for the first.
        `force` makes the output again and replaces the old one.
        `unlisted` names folders that the manifest leaves out, since they carry digests of their own.
        `reads`: outputs that `write` reads; pruning leaves them alone meanwhile.
        Raises UserError when the disk is full.
        """
        if not force and (found := self.find(stage, key)):
            return self._share(found)
        with in_use(*(folder / MANIFEST for folder in reads)), self._working_folder(stage, key, resumable) as work:
            if not force and (found := self.here(stage, key)):  # another run made it while this one waited
                return found
            self._refuse_another_disk(self.place(stage, key).parent)
            if gone := [str(folder) for folder in reads if not folder.is_dir()]:
                raise UserError(
                    f"{gone[0]}, which stage {stage} reads, is gone; run the stages before it again, and it is made again."
                )
            if resumable:  # what it is made from, so that pruning knows what it needs, whoever works on it
                write_atomically(work / MANIFEST, json.dumps({"stage": stage, "key": key, **described_by}, indent=1))
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
            work = self._scratch(work.name)
            try:
                with in_use(work):
                    yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _refuse_another_disk(self, folder: Path) -> None:
        """Raise UserError, before any work is done, where a finished output could not be renamed into its place."""
        folder.mkdir(parents=True, exist_ok=True)
        if folder.stat().st_dev != (self.root / ".work").stat().st_dev:
            raise UserError(f"{folder}: is on another disk than {self.root}; keep the store on one, or move the whole of it.")

    def _scratch(self, name: str) -> Path:
        """Make a new folder in `.work`, with the modes that the umask gives: others may share the store."""
        work = self.root / ".work" / f"{name}-{uuid.uuid4().hex[:8]}"
        work.mkdir(parents=True)
        return work

    def remove(self, folder: Path) -> None:
        """Take a folder out of the store in one rename, then remove it: one that is cut off leaves no half of an output.

        Of a symbolic link only the link goes: what it points to is outside the store, and somebody's.
        """
        aside = self.set_aside(folder, "removed")
        if aside.is_symlink():
            aside.unlink()
        else:
            shutil.rmtree(aside)

    def set_aside(self, folder: Path, why: str) -> Path:
        """Move a folder to where nothing looks for outputs; returns its new place."""
        name = folder.name if folder.parent.name == ".work" else f"{folder.parent.name}-{folder.name}"
        aside = self.root / ".work" / f"{name}-{why}-{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(aside)
        return aside

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
        files.pop(MANIFEST, None)  # of its beginning, or of an attempt that was killed while it published
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
            self.remove(place)
        return self._move_in(work, stage, key) or Output(place, key, facts, manifest["seconds"])

    def _move_in(self, work: Path, stage: str, key: str) -> Output | None:
        """Rename a whole folder into its place; the output that is there instead where another run was faster.

        What is there without a whole manifest is no output (a disk failed, or a removal was cut off): it makes room.
        """
        place = self.place(stage, key)
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.rename(place)
        except OSError:
            found = self.here(stage, key)
            if found is not None:
                shutil.rmtree(work, ignore_errors=True)  # another run won the race with the same content
                return found
            if not place.is_dir() and not place.is_symlink():
                raise
            logging.getLogger(__name__).warning("%s has no whole %s; it is replaced.", place, MANIFEST)
            with contextlib.suppress(FileNotFoundError):  # another run was faster at this
                self.remove(place)
            return self._move_in(work, stage, key)
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

    def places(self) -> list[Path]:
        """List the folders in which outputs are, whole or not."""
        folders = self.root.glob("[!.]*/*/")
        return sorted(path for path in folders if _KEY.fullmatch(path.name) or (path / MANIFEST).is_file())

    def outputs(self) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        """Yield every finished output: (stage, folder, manifest)."""
        for path in self.places():
            if (manifest := whole_manifest(path)) is not None:  # else pruned meanwhile, or damaged
                yield path.parent.name, path, manifest


def whole_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished output; None where there is none, or one that is damaged."""
    manifest = read_object(folder / MANIFEST)
    return manifest if {"stage", "key", "facts", "seconds", "files"} <= manifest.keys() else None


def _tell(holder: str) -> None:
    logging.getLogger(__name__).warning("another run makes this output; waiting for it: %s", holder)


def _versions() -> Iterator[tuple[str, str]]:
    for name in _VERSIONS_OF:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)
