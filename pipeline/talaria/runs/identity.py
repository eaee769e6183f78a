"""The identity of a run: a digest of data, base model and the settings that change the result."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.common.files import MANIFEST, digest, file_digest, read_object, write_atomically
from talaria.common.locks import in_use, locked
from talaria.common.user_code import module_digest

if TYPE_CHECKING:
    from talaria.config.schema import Config

DIGESTS = ".digests.json"
"""In the training folder: sha256 of every input file, as long as its size and time are those noted beside it."""
_LOCK = ".digests.lock"
"""Held while a launch reads the files; its ranks wait for that."""
_DATA = (".arrow", ".safetensors", ".json", ".jinja", ".txt")


def run_identity(config: Config, tokens: Path, base: Path, output: Path, *, reread: bool = False) -> str:
    """Return what tells this run from others; the same for every rank and however many there are.

    Files are hashed whole and their digests kept in `output`, from where the next call takes them. `reread`: hash them all
    anew, as a disk may damage a file and leave its time as it was; a launch does so once, its ranks wait for it and rely on it.
    Raises DataError where a file is not what the manifest beside it says: it was damaged or replaced after it had been made.
    """
    if not reread:
        with in_use(output / _LOCK):
            pass
    return _identity(config, tokens, base, output, _Digests(output / DIGESTS, reread=reread))


def noted_identity(config: Config, tokens: Path, base: Path, output: Path) -> str | None:
    """Return the same by the digests that are noted, without reading a file; None where one of them is not noted or not right."""
    try:
        return _identity(config, tokens, base, output, _Digests(output / DIGESTS, hashes=False))
    except (LookupError, DataError):
        return None


def being_read(output: Path) -> AbstractContextManager[int]:
    """Let `run_identity` in other processes wait. Raises Busy where another process holds it."""
    return locked(output / _LOCK, wait=0)


def _identity(config: Config, tokens: Path, base: Path, output: Path, digests: _Digests) -> str:
    found = {name: _folder(folder, output, digests) for name, folder in (("tokens", tokens), ("base", base))}
    digests.keep()
    own_code = {"loss": module_digest("train.loss", config.train.loss)} if ":" in config.train.loss else {}
    return digest({"train": config.train.key_fields(), **found, **own_code})


def _folder(folder: Path, output: Path, digests: _Digests) -> dict[str, str]:
    """Digest of each data file by name. What a training inside the folder writes there is no part of it."""
    listed = _listed(folder)
    paths = [folder / name for name in listed] or [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in _DATA and path.is_file() and path.name != MANIFEST and not path.is_relative_to(output)
    ]
    found = dict(zip((path.relative_to(folder).as_posix() for path in paths), digests.of(paths), strict=True))
    for name, sha256 in listed.items():
        if found[name] != sha256:
            raise DataError(
                f"{folder / name}: is not what {MANIFEST} beside it says (another sha256): it was damaged or replaced; make the "
                "folder again: remove it and repeat the command that made it, or in a store use `talaria store verify --repair`, "
                "and the next run makes it again."
            )
    return found


def _listed(folder: Path) -> dict[str, str]:
    """The digests that a folder's manifest lists; none where it has no manifest, or one without them."""
    files = read_object(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        return {}
    return {name: file["sha256"] for name, file in files.items()}


class _Digests:
    """sha256 of files by absolute path, remembered with size, time of change and inode."""

    def __init__(self, path: Path, *, reread: bool = False, hashes: bool = True) -> None:
        """`hashes`: whether a file whose digest is not known is read; absent, LookupError is raised."""
        self.path, self.hashes = path, hashes
        self._known: dict[str, Any] = {} if reread else read_object(path)
        self._changed = False

    def of(self, paths: Iterable[Path]) -> list[str]:
        """Raises DataError where a file is missing or cannot be read."""
        with ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
            return list(pool.map(self._one, paths))

    def keep(self) -> None:
        if self._changed and self.path.parent.is_dir():
            write_atomically(self.path, json.dumps(self._known, indent=1))

    def _one(self, path: Path) -> str:
        try:
            stat = path.stat()
            sign = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
            known = self._known.get(str(path.absolute()))
            if isinstance(known, list) and known[:3] == sign:
                return str(known[3])
            if not self.hashes:
                raise LookupError(path)
            sha256 = file_digest(path)
        except FileNotFoundError:
            raise DataError(f"{path}: is missing, though {MANIFEST} beside it lists it; make the folder again.") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); make it readable, or the folder again.") from None
        self._known[str(path.absolute())] = [*sign, sha256]
        self._changed = True
        return sha256
