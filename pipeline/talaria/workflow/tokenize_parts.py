"""Tokenise as row ranges on many workers (tokenize.shards above 1): the same bytes as in one process, sooner.

Three steps, each a task of its own: which parts there are to do, one part, and the join of all parts into the stage's output.
Parts are kept in the store's working folder, one finished rename each, so a retry does only what is missing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.files import MANIFEST
from talaria.common.locks import in_use
from talaria.config.schema import Config
from talaria.stages.run import run_stage
from talaria.stages.table import STAGES, key_of
from talaria.store.store import Output, Store

STAGE = "tokenize"


def parts_to_do(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> list[int]:
    """Return the numbers of the parts to do; empty if one process does it all or the output exists."""
    if config.tokenize.shards == 1 or (not force and store.find(STAGE, _key(config, upstream))):
        return []
    if force:
        shutil.rmtree(_parts(config, store, upstream), ignore_errors=True)
    return list(range(config.tokenize.shards))


def tokenize_part(config: Config, store: Store, upstream: Mapping[str, Output], part: int) -> None:
    """Encode one part, unless an earlier attempt has. Raises DataError for a row that cannot be encoded."""
    from talaria.tokenization.stage import MESSAGES, tokenize_range

    folder = _parts(config, store, upstream)
    place = folder / f"{part:05d}"
    if place.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (
        in_use(folder, upstream["convert"].path / MANIFEST, upstream["base"].path / MANIFEST),
        tempfile.TemporaryDirectory(dir=folder) as work,
    ):
        parquet = upstream["convert"].path / MESSAGES
        tokenize_range(parquet, upstream["base"].path, Path(work) / "part", config.tokenize, part, config.tokenize.shards)
        (Path(work) / "part").rename(place)


def join(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> Output:
    """Make the stage's output from the parts, or in one process if there are none."""
    if config.tokenize.shards == 1:
        return run_stage(STAGE, config, store, upstream, force=force)
    folder = _parts(config, store, upstream)

    def merge(config: Config, folders: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        from talaria.tokenization.stage import merge

        parts = [folder / f"{part:05d}" for part in range(config.tokenize.shards)]
        return merge(parts, folders["base"], out_dir, config.tokenize)

    output = run_stage(STAGE, config, store, upstream, force=force, function=merge)
    shutil.rmtree(folder, ignore_errors=True)
    return output


def _parts(config: Config, store: Store, upstream: Mapping[str, Output]) -> Path:
    return store.root / ".work" / f"{STAGE}-{_key(config, upstream)[:32]}-in-{config.tokenize.shards}"


def _key(config: Config, upstream: Mapping[str, Output]) -> str:
    return key_of(STAGES[STAGE], config, {name: output.key for name, output in upstream.items()})[0]
