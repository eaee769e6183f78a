"""Files of a data set on the hub: listed at a commit, fetched so that an interrupted transfer goes on, checked by digest.

The hub library restarts an interrupted file from nothing (each attempt writes to a name of its own). Here a partial file
stands beside the output, in a folder named after the digest of what it will be, for the next attempt to go on with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from talaria.common.errors import DataError, Unavailable, UserError
from talaria.common.hub import commit_of, explained, token
from talaria.common.locks import in_use, lock_itself
from talaria.config.data_settings import Download
from talaria.data.source_files import DATA_SUFFIXES, EVERY, KINDS, PACKED_SUFFIXES, find_files, is_data_name, matches, of_training


@dataclass(frozen=True)
class HubFile:
    path: str
    size: int
    digest: str
    """sha256 of the content (a file in large-file storage), or git's sha1 of the blob (any other)."""


def fetch(config: Download, data: Path, out_dir: Path) -> str:
    """Put the repository's data files under `data`, each checked; what is not whole yet stands beside `out_dir`.

    Returns the commit.

    Files in the hub library's cache are used, so a machine without a network can run after `hf download`.
    """
    commit = commit_of(config.repo, config.revision, "dataset")
    try:
        files = listing(config, commit)
    except Unavailable as offline:
        copy_cached(config, commit, data, offline)
        return commit
    for file in files:
        target = data / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        cached = in_cache(config.repo, commit, file.path)
        if cached and cached.stat().st_size == file.size:
            shutil.copyfile(cached, target)
            if digest_like(file.digest, target) == file.digest:
                continue
        partial = out_dir.with_name(f".download-{file.digest}") / "partial"
        with locked(partial) as stream:
            transfer(config.repo, commit, file, partial, stream)
            verify(config.repo, file, partial)
            partial.replace(target)
        with contextlib.suppress(OSError):  # another run waits there for the same file
            partial.parent.rmdir()
    return commit


def listing(config: Download, commit: str) -> list[HubFile]:
    """The data files of the repository that `download.files` names."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with explained(config.repo, config.revision, "dataset"):
        entries = list(HfApi(token=token()).list_repo_tree(config.repo, recursive=True, revision=commit, repo_type="dataset"))
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    if any(".." in PurePosixPath(file.path).parts or file.path.startswith("/") for file in files):
        raise DataError(f"{config.repo}@{commit[:8]}: lists a file outside the repository.")
    names = [file.path for file in files if is_data_name(file.path) and matches(file.path, config.files)]
    taken = set(of_training(names) if config.files == EVERY else names)
    kept = [file for file in files if file.path in taken]
    if not kept:
        there = ", ".join(file.path for file in files[:5]) or "nothing"
        raise DataError(f"{config.repo}@{commit[:8]}: no data file that matches '{config.files}' ({KINDS}); it has {there}.")
    return [HubFile(file.path, file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in kept]


def in_cache(repo: str, commit: str, path: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, path, revision=commit, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def copy_cached(config: Download, commit: str, data: Path, offline: Unavailable) -> None:
    """Without a network: a snapshot that the library knows to be complete. Raises `offline` where there is none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    every = [f"*{suffix}{packing}" for suffix in DATA_SUFFIXES for packing in ("", *PACKED_SUFFIXES)]
    names = [config.files] if config.files != EVERY else every
    try:
        folder = snapshot_download(config.repo, repo_type="dataset", revision=commit, local_files_only=True, allow_patterns=names)
    except LocalEntryNotFoundError:
        raise offline from None
    for file in find_files(Path(folder), config.files):
        name = file.path.relative_to(folder)
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, data / name)
        blob = file.path.resolve().name  # the cache names a blob by its digest
        if len(blob) in (40, 64) and digest_like(blob, data / name) != blob:
            raise DataError(f"{file.path}: damaged: its digest is not {blob}; delete it and download it again.")


@contextlib.contextmanager
def locked(partial: Path) -> Iterator[BinaryIO]:
    """The partial file, open at its end, for this process alone: another run that fetches the same file waits."""
    fd = None
    while fd is None:  # again where the other run, now done, moved the file or took the folder away just now
        partial.parent.mkdir(exist_ok=True)
        fd = lock_itself(partial, os.O_WRONLY | os.O_APPEND | os.O_CREAT, wait=True)
    with os.fdopen(fd, "ab") as stream, in_use(partial.parent):  # against pruning, which looks at the folder
        yield stream


def transfer(repo: str, commit: str, file: HubFile, partial: Path, stream: BinaryIO) -> None:
    """Append what is missing of the file to `partial`, which `stream` writes. Raises Unavailable where the connection breaks."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    done = stream.seek(0, os.SEEK_END)
    if done > file.size:
        done = stream.truncate(0)
    folder, missing = partial.parent, file.size - done
    free = shutil.disk_usage(folder).free
    if free < missing:
        raise UserError(f"{repo}/{file.path}: needs {missing:,} bytes and {folder} has {free:,} free; make room there.")
    url = hf_hub_url(repo, file.path, repo_type="dataset", revision=commit)
    try:
        with explained(repo, commit, "dataset"):
            http_get(
                url,
                stream,
                resume_size=done,
                headers=build_hf_headers(token=token()),
                expected_size=file.size,
                displayed_filename=file.path,
            )
    except Unavailable as error:
        got = stream.tell()
        raise Unavailable(
            f"{repo}/{file.path}: the connection broke after {got:,} of {file.size:,} bytes; "
            "run again to go on from there, with a network."
        ) from error
    stream.flush()
    os.fsync(stream.fileno())


def verify(repo: str, file: HubFile, partial: Path) -> None:
    """Raises DataError, and removes the file, where it is not what the hub lists."""
    found = digest_like(file.digest, partial)
    if partial.stat().st_size != file.size or found != file.digest:
        size = partial.stat().st_size
        partial.unlink()
        raise DataError(
            f"{repo}/{file.path}: got {size:,} bytes with digest {found}, the hub lists {file.size:,} with {file.digest}; "
            "the copy is removed: run again."
        )


def digest_like(expected: str, path: Path) -> str:
    """The file's digest of the kind that `expected` is: sha256 (64 digits), or git's sha1 of a blob (40)."""
    if len(expected) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
