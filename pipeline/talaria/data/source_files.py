"""Which files hold the conversations, what they are, and how they are opened."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import pyarrow as pa

from talaria.common.errors import DataError

DATA_SUFFIXES = (".parquet", ".json", ".jsonl", ".ndjson", ".csv")
PACKED_SUFFIXES = (".zst", ".gz")
KINDS = "parquet, JSON array, JSON Lines or CSV, each also as .zst or .gz"
# Describe a data set beside its rows; they hold none themselves.
_NOT_DATA = {"manifest.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""Begins a zstd frame without content, as pzstd writes one first."""

Kind = Literal["parquet", "json", "csv"]


@dataclass(frozen=True)
class SourceFile:
    path: Path
    name: str
    """As errors call it."""
    kind: Kind
    packing: str | None = None
    """As Arrow names the compression: zstd, gzip."""
    ends_inside = False
    """Whether rows follow after the last byte: of a stretch of a file (readers/file_ranges.py)."""

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The bytes, decompressed. Raises DataError where they cannot be read, also in the block; a cut stream is told."""
        try:
            with self.path.open("rb") as raw:
                yield pa.CompressedInputStream(raw, self.packing) if self.packing else raw
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}.") from None


def is_data_name(name: str) -> bool:
    """Whether a file's name says that it holds rows. Hidden files and folders (.ipynb_checkpoints) hold copies, not data."""
    path = PurePosixPath(name.lower())
    base = path.name.removesuffix(path.suffix) if path.suffix in PACKED_SUFFIXES else path.name
    return base.endswith(DATA_SUFFIXES) and base not in _NOT_DATA and not any(part.startswith(".") for part in path.parts)


@dataclass(frozen=True)
class SourceFiles:
    """The data files at a place, in the order of their names, and the names of the files there that are none of them."""

    files: list[SourceFile]
    left_out: list[str]


EVERY = "*"
"""The pattern of who chose no files: all, but for those of the validation and test splits beside a train split."""
_OTHER = "validation|valid|val|dev|test|testing|eval|evaluation"
_SPLIT = re.compile(rf"(?:^|[-._ /0-9])(?:(train|training)|({_OTHER}))(?=[-._ /0-9]|$)")


def of_training(names: Sequence[str]) -> list[str]:
    """The names without those of a validation or test split, where there is a train split beside them.

    Words in a path tell its split, as for `datasets`; the last one counts.
    """
    found = {name: _SPLIT.findall(name.lower()) for name in names}
    if not any(train for words in found.values() for train, _ in words):
        return list(names)
    return [name for name, words in found.items() if not words or words[-1][0]]


def find_files(source: Path, pattern: str = EVERY, *, all_splits: bool = False) -> list[SourceFile]:
    """The data files at `source`, a file or a folder searched in depth, in the order of their names.

    Raises DataError where there is none, or where a folder mixes parquet with JSON (most likely the same rows twice).
    """
    return search(source, pattern, all_splits=all_splits).files


def search(source: Path, pattern: str = EVERY, *, all_splits: bool = False) -> SourceFiles:
    """As find_files, with the names of what is left out."""
    if not source.exists():
        raise DataError(f"{source}: no such file or folder.")
    if source.is_file():
        return SourceFiles([_sniff(source, str(source))], [])
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    kept = [name for name in names if is_data_name(name) and matches(name, pattern)]
    if pattern == EVERY and not all_splits:
        kept = of_training(kept)
    if not kept:
        there = ", ".join(names[:5]) or "nothing"
        raise DataError(f"{source}: holds no data file that matches '{pattern}' ({KINDS}); found {there}.")
    files = [_sniff(source / name, f"{source}/{name}") for name in kept]
    kinds = sorted({file.kind for file in files})
    if len(kinds) > 1:
        raise DataError(
            f"{source}: holds {' and '.join(_TITLES[kind] for kind in kinds)} files; "
            f"choose one kind with download.files, for example '*.{kinds[-1]}'."
        )
    left_out = [name for name in names if name not in kept and PurePosixPath(name).name not in _NOT_DATA]
    return SourceFiles(files, left_out)


_TITLES = {"csv": "CSV", "json": "JSON", "parquet": "parquet"}


def matches(name: str, pattern: str) -> bool:
    """Whether a glob takes the file, as pathlib has them: for the end of its path, or, with `**`, for the whole of it."""
    return bool(_compiled(pattern).fullmatch(name))


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    steps = [step for step in pattern.split("/") if step]
    if "**" not in steps:
        steps = ["**", *steps]
    if steps[-1] == "**":
        steps.append("*")
    pieces = ["(?:[^/]+/)*" if step == "**" else _step(step) + "/" for step in steps]
    return re.compile("".join(pieces).removesuffix("/"), re.DOTALL)


_STEP = re.compile(r"\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)


def _step(step: str) -> str:
    """One step of a path: `*`, `?`, `[set]` and `[!set]` match within it."""

    def piece(found: re.Match[str]) -> str:
        text = found[0]
        if len(text) > 2 and text[0] == "[":
            return "[^/" + text[2:] if text[1] == "!" else text
        return {"*": "[^/]*", "?": "[^/]"}.get(text[0], re.escape(text))

    return _STEP.sub(piece, step)


def _sniff(path: Path, name: str) -> SourceFile:
    with SourceFile(path, name, "json").open() as stream:
        magic = stream.read(4)
    zstd = magic == _ZSTD or _SKIPPABLE.match(magic)
    packing = "zstd" if zstd else "gzip" if magic.startswith(_GZIP) else None
    with SourceFile(path, name, "json", packing).open() as stream:
        magic = stream.read(4)
    if magic == b"PAR1":
        return SourceFile(path, name, "parquet", packing)
    bare = PurePosixPath(name.lower().removesuffix(".zst").removesuffix(".gz"))
    if bare.suffix == ".csv":
        return SourceFile(path, name, "csv", packing)
    if magic.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] not in (b"[", b"{", b"") or bare.suffix == ".parquet":
        raise DataError(f"{name}: not a data file that can be read; expected {KINDS}.")
    return SourceFile(path, name, "json", packing)
