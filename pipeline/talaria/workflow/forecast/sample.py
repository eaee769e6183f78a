"""Estimate what data that was never tokenised holds: its first rows go through convert and tokenize, and count for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from talaria.common.errors import UserError
from talaria.config.schema import Config
from talaria.data.convert_rows import write_messages
from talaria.data.messages_parquet import MESSAGES
from talaria.data.source_files import SourceFile, search
from talaria.data.source_sample import sample_files
from talaria.store.store import Store

_ROWS = 500
"""Of converted data; of files that are not converted yet, what data/source_sample.py takes."""


def estimate(config: Config, store: Store, keys: Mapping[str, str], tokenizer: Path | None) -> dict[str, int] | None:
    """Return conversations and tokens of the training split; None where the data or the tokenizer is not here.

    Of a mixture only once it is converted: which rows are chosen is decided there.
    """
    if tokenizer is None:
        return None
    with TemporaryDirectory(prefix="talaria-plan-") as folder:
        work = Path(folder)
        try:
            found = _converted(config, store, keys, work) or _raw(config, store, keys, work)
            return _scaled(config, *found, tokenizer, work / "tokens") if found else None
        except UserError:  # the stages will say so
            return None


def _converted(config: Config, store: Store, keys: Mapping[str, str], work: Path) -> tuple[Path, int, float] | None:
    """Return (messages parquet, rows that it stands for, conversations of the training data), from an output of convert."""
    made = store.here("convert", keys["convert"]) if "convert" in keys else None
    if made is None:
        return None
    file = pq.ParquetFile(made.path / MESSAGES)
    head = next(file.iter_batches(_ROWS), None)
    if head is None:
        return None
    pq.write_table(pa.Table.from_batches([head]), work / MESSAGES)
    rows = sum(one["train"] for one in made.facts["sources"].values()) if config.sources else file.metadata.num_rows
    return work / MESSAGES, len(head), rows


def _raw(config: Config, store: Store, keys: Mapping[str, str], work: Path) -> tuple[Path, int, float] | None:
    """The same from source files: those that were downloaded, or lie on this machine."""
    made = store.here("download", keys["download"]) if "download" in keys else None
    if config.sources or (made is None and config.download.source != "local"):
        return None
    path = made.path / "data" if made else config.download.path
    assert path is not None  # the configuration has checked it
    files = search(path) if made else search(path, config.download.files)
    samples = sample_files(files.files, work)
    written = write_messages(samples, work / MESSAGES, config.convert.model_copy(update={"on_bad_row": "drop"}))
    share = _share(files.files, samples)
    if not written["rows_in"] or share is None:
        return None
    rows = written["rows_in"] / share
    return work / MESSAGES, written["rows_in"], min(rows, config.convert.rows or rows)


def _share(files: list[SourceFile], samples: list[SourceFile]) -> float | None:
    """How much of the data the samples are: by rows where files say how many they have, else by bytes. None of CSV."""
    names = {sample.name: sample for sample in samples}
    if all(file.kind == "parquet" for file in files):
        rows = sum(pq.read_metadata(file.path).num_rows for file in files)
        return sum(pq.read_metadata(sample.path).num_rows for sample in samples) / rows if rows else None
    if any(file.kind != "json" for file in files):
        return None
    taken = sum(_size(sample, file.packing) for file in files if (sample := names.get(file.name)))
    return min(1.0, taken / sum(file.path.stat().st_size for file in files))


def _size(sample: SourceFile, packing: str | None) -> int:
    """Bytes that a sample takes as its file is packed."""
    content = sample.path.read_bytes()
    return len(pa.compress(content, codec=packing, asbytes=True)) if packing else len(content)


def _scaled(config: Config, parquet: Path, rows: int, total: float, tokenizer: Path, folder: Path) -> dict[str, int]:
    from talaria.tokenization.stage import tokenize

    made = tokenize(parquet, tokenizer, folder, config.tokenize.model_copy(update={"validation_fraction": 0.0}))
    factor = total / rows * (1.0 - (0.0 if config.sources else config.tokenize.validation_fraction))
    return {name: _rounded(factor * sum(made[name].values())) for name in ("conversations", "tokens")}


def _rounded(count: float) -> int:
    """Three digits: more would say more than is known."""
    return int(float(f"{count:.3g}"))
