"""Tokenise as row ranges on many workers (tokenize.shards above 1): the same bytes as in one process, sooner.

Three steps, each a task of its own: which parts there are to do, one part, and the join of all parts into the stage's output.
Parts are kept in the store's working folder, one finished rename each, so a retry does only what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.locks import in_use
from talaria.config.schema import Config
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store
from talaria.workflow.part_folders import PartFolders

STAGE = "tokenize"


def parts_to_do(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> list[int]:
    """Return the numbers of the parts to do; empty if one process does it all or the output exists."""
    if config.tokenize.shards == 1:
        return []
    if not _folders(config, store, upstream).wanted(STAGE, store, force=force):
        return []
    return list(range(config.tokenize.shards))


def tokenize_part(config: Config, store: Store, upstream: Mapping[str, Output], part: int) -> None:
    """Encode one part, unless an earlier attempt has. Raises DataError for a row that cannot be encoded."""
    from talaria.tokenization.stage import MESSAGES, tokenize_range

    folders, parquet, base = _folders(config, store, upstream), upstream["convert"].path / MESSAGES, upstream["base"].path
    shards = config.tokenize.shards
    folders.fill(folders.place(part), lambda folder: tokenize_range(parquet, base, folder, config.tokenize, part, shards))


def join(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> Output:
    """Make the stage's output from the parts, or in one process if there are none."""
    if config.tokenize.shards == 1:
        return run_stage(STAGE, config, store, upstream, force=force)
    folders = _folders(config, store, upstream)

    def merge(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        from talaria.tokenization.stage import merge

        parts = [folders.place(part) for part in range(config.tokenize.shards)]
        return merge(parts, inputs["base"], out_dir, config.tokenize)

    with in_use(folders.root):
        output = run_stage(STAGE, config, store, upstream, force=force, function=merge)
    folders.remove()
    return output


def _folders(config: Config, store: Store, upstream: Mapping[str, Output]) -> PartFolders:
    return PartFolders.of(STAGE, config.tokenize.shards, config, store, upstream)
