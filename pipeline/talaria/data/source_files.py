"""Which files hold the conversations, what they are, and how they are opened."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from talaria.common.errors import DataError

DATA_SUFFIXES = (".parquet", ".json", ".jsonl", ".ndjson")
KINDS = "parquet, JSON array or JSON Lines, each also as .zst"
# Describe a data set beside its rows; they hold none themselves.
_NOT_DATA = {"manifest.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str
    """As errors call it."""
    compressed: bool
    is_parquet: bool

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, decompressed. Raises DataError where they cannot be read, also in the block; a cut zstd stream is told."""
        try:
            with self.path.open("rb") as raw:
                yield pa.CompressedInputStream(raw, "zstd") if self.compressed else raw
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}.") from None


def is_data_name(name: str) -> bool:
    """Whether a file's name says that it holds rows."""
    base = name.rsplit("/", 1)[-1].lower()
    return base.removesuffix(".zst").endswith(DATA_SUFFIXES) and base not in _NOT_DATA and not base.startswith(".")


def find_files(source: Path, pattern: str = "*") -> list[SourceFile]:
    """The data files at `source`, a file or a folder searched in depth, in the order of their names.

    Raises DataError where there is none, or where a folder mixes parquet with JSON (most likely the same rows twice).
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if source.is_file():
        return [_sniff(source, str(source))]
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    kept = [name for name in names if is_data_name(name) and matches(name, pattern)]
    if not kept:
        there = ", ".join(names[:5]) or "nothing"
        raise DataError(f"{source}: holds no data file that matches '{pattern}' ({KINDS}); found {there}.")
    files = [_sniff(source / name, f"{source}/{name}") for name in kept]
    if len({file.is_parquet for file in files}) > 1:
        raise DataError(f"{source}: holds parquet and JSON files; choose one kind with download.files, for example '*.parquet'.")
    return files


def matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(name.rsplit("/", 1)[-1], pattern)


def _sniff(path: Path, name: str) -> SourceFile:
    with SourceFile(path, name, False, False).open() as stream:
        compressed = stream.read(4) == _ZSTD
    with SourceFile(path, name, compressed, False).open() as stream:
        magic = stream.read(4)
    is_parquet = magic == b"PAR1"
    if not is_parquet and magic.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"[", b"{", b""):
        raise DataError(f"{name}: not a data file that can be read; expected {KINDS}.")
    return SourceFile(path, name, compressed, is_parquet)
