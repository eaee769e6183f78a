"""A copy of the store on object storage, so that another machine reuses what this one made.

    <address>/<stage>/<key>/<sha256>         the content of a file
    <address>/<stage>/<key>/manifest.json    written last: without it, the rest does not count

Objects have the names of their digests, so two machines that upload one key at once cannot mix what they made, a file that is
there twice is sent once, and every file that comes back is checked. Credentials are the environment's (AWS_*), never ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from talaria.common.errors import Unavailable, UserError
from talaria.common.files import MANIFEST, file_digest, fsync
from talaria.common.redact import scrub

ADDRESS = "TALARIA_REMOTE"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AT_A_TIME = 2  # files
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "max_concurrency": 4,  # parts of 50 MB, of each file, that are held in memory
        # s3fs tries five times by itself; botocore's own five for each would make minutes of a server that is away.
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"total_max_attempts": 1}},
    },
    "file": {"auto_mkdir": True},
}


class RemoteError(Unavailable):
    """The object storage did not answer or refused a request. A retry may help."""


class Damaged(RemoteError):
    """A copy differs from what was uploaded. Its manifest is deleted, so that the next upload replaces it."""


class Remote:
    """Folders of the store, by their `place` in it ("train/0123..."), on any file system that fsspec knows.

    Methods raise RemoteError, and UserError where the address cannot be used at all.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if not parts.scheme:
            raise UserError(f"{ADDRESS}: {address!r} is not an address; write for example s3://bucket/prefix.")
        if parts.password is not None or parts.query:
            raise UserError(f"{ADDRESS}: leave credentials out of the address; they come from AWS_ACCESS_KEY_ID and the like.")
        self.address, self.scheme = address.rstrip("/"), parts.scheme

    @classmethod
    def from_environment(cls) -> Remote | None:
        """Return the deployment's object storage (TALARIA_REMOTE), or None."""
        address = os.environ.get(ADDRESS)
        return cls(address) if address else None

    @cached_property
    def _system(self) -> tuple[Any, str]:
        """Return the file system and our root in it."""
        from fsspec.core import url_to_fs

        try:
            # No listing is kept: others write there too.
            system, root = url_to_fs(self.address, use_listings_cache=False, **_OPTIONS.get(self.scheme, {}))
        except (ImportError, ValueError) as error:
            raise UserError(f"{ADDRESS}: {self.scheme}:// cannot be used: {error}.") from error
        return system, root.rstrip("/")

    def manifest(self, place: str) -> dict[str, Any] | None:
        """Return the manifest of a complete copy, or None. Raises Damaged if the file is no manifest of ours."""
        system, root = self._system
        with self._plain_errors():
            try:
                text = system.cat_file(f"{root}/{place}/{MANIFEST}")
            except FileNotFoundError:
                return None
        try:
            manifest = json.loads(text)
            _check(manifest["files"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.forget(place)
            raise Damaged(f"{self.address}/{place}/{MANIFEST} is not usable ({error})") from error
        return dict(manifest)

    def push(self, place: str, folder: Path, manifest: Mapping[str, Any], *, give_up: Callable[[], bool] = lambda: False) -> None:
        """Upload the files that `manifest["files"]` lists, then the manifest; a copy that was there is whole until then.

        Raises RemoteError, leaving the manifest out, where `give_up` turns true meanwhile.
        """
        system, root = self._system
        former = _digests(self.manifest(place) or {"files": {}})
        contents = {entry["sha256"]: folder / name for name, entry in manifest["files"].items()}

        def put(digest: str) -> None:
            if give_up():
                raise RemoteError(f"the upload to {self.address}/{place} was given up")
            system.put_file(str(contents[digest]), f"{root}/{place}/{digest}")

        with self._plain_errors():
            _in_parallel(put, contents.keys() - former)
            if give_up():
                raise RemoteError(f"the upload to {self.address}/{place} was given up")
            system.pipe_file(f"{root}/{place}/{MANIFEST}", json.dumps(manifest, indent=1).encode())
            _in_parallel(lambda digest: system.rm_file(f"{root}/{place}/{digest}"), former - contents.keys())

    def pull(self, place: str, manifest: Mapping[str, Any], folder: Path) -> None:
        """Download the files of `manifest` into an empty folder; verify and flush each. Raises Damaged."""
        system, root = self._system
        names: dict[str, list[Path]] = {}
        for name, entry in manifest["files"].items():
            names.setdefault(entry["sha256"], []).append(folder / name)

        def get(digest: str) -> None:
            first, *others = names[digest]
            for path in names[digest]:
                path.parent.mkdir(parents=True, exist_ok=True)
            try:
                system.get_file(f"{root}/{place}/{digest}", str(first))
            except FileNotFoundError:
                raise Damaged(f"{self.address}/{place} lacks {first.relative_to(folder)}") from None
            if file_digest(first) != digest:
                raise Damaged(f"{self.address}/{place}: {first.relative_to(folder)} does not have the sha256 of the manifest")
            for other in others:
                shutil.copyfile(first, other)
            for path in names[digest]:
                fsync(path)

        try:
            with self._plain_errors():
                _in_parallel(get, names)
        except Damaged:
            self.forget(place)
            raise

    def remove(self, place: str) -> None:
        """Remove a copy, its manifest first, so that half of it is never used."""
        system, root = self._system
        self.forget(place)
        with self._plain_errors(), contextlib.suppress(FileNotFoundError):
            system.rm(f"{root}/{place}", recursive=True)

    def forget(self, place: str) -> None:
        """Take a copy out of use; the next upload replaces it."""
        system, root = self._system
        with self._plain_errors(), contextlib.suppress(FileNotFoundError):
            system.rm_file(f"{root}/{place}/{MANIFEST}")

    @contextlib.contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """Turn what fsspec's many file systems raise, each its own library's, into a RemoteError of one line."""
        try:
            yield
        except RemoteError:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0] or type(error).__name__
            raise RemoteError(f"{self.address} does not work: {scrub(reason).rstrip('.')}") from error


def _check(files: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError for a name that would lead out of the folder or a digest that is none."""
    for name, entry in files.items():
        path = PurePosixPath(name)
        strange = str(path) != name or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name
        if strange or name in (".", MANIFEST):
            raise ValueError(f"the file name {name!r} is not allowed")
        if not _DIGEST.fullmatch(entry["sha256"]):
            raise ValueError(f"{name} has no sha256")


def _digests(manifest: Mapping[str, Any]) -> set[str]:
    return {entry["sha256"] for entry in manifest["files"].values()}


def _in_parallel(work: Callable[[str], None], items: Iterable[str]) -> None:
    """Raises the first error; what has not begun by then is left."""
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for _ in pool.map(work, items):
            pass
