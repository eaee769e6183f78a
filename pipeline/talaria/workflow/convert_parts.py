"""Convert on many workers (convert.shards above 1): the same bytes as in one process, sooner (data/convert_parts.py).

Four steps, each a task of its own: which parts there are to do, the columns of each, the rows of each, and the join of all
parts into the stage's output.
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

STAGE, FIRST_ROUND = "convert", "columns-"


def parts_to_do(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> list[int]:
    """Return the numbers of the parts to do; empty if one process does it all or the output exists."""
    from talaria.data.convert_parts import shares

    if config.convert.shards == 1:
        return []
    if not _folders(config, store, upstream).wanted(STAGE, store, force=force):
        return []
    count = len(shares(_data(upstream), config.convert.shards))
    return list(range(count)) if count > 1 else []


def find_columns(config: Config, store: Store, upstream: Mapping[str, Output], part: int) -> None:
    """Round one of a part, unless an earlier attempt has done it. Raises DataError where a file cannot be read."""
    from talaria.data.convert_parts import shares, write_columns

    folders, share = _folders(config, store, upstream), shares(_data(upstream), config.convert.shards)[part]
    folders.fill(folders.place(part, FIRST_ROUND), lambda folder: write_columns(share, folder, config.convert))


def convert_part(config: Config, store: Store, upstream: Mapping[str, Output], part: int) -> None:
    """Round two of a part, after round one of all."""
    from talaria.data.convert_parts import shares, write_part

    folders, every = _folders(config, store, upstream), shares(_data(upstream), config.convert.shards)
    rounds = [folders.place(number, FIRST_ROUND) for number in range(len(every))]
    folders.fill(folders.place(part), lambda folder: write_part(every, part, rounds, folder, config.convert))


def join(config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> Output:
    """Make the stage's output from the parts; in this process if there are none, or they do not go together."""
    if config.convert.shards == 1:
        return run_stage(STAGE, config, store, upstream, force=force)
    folders = _folders(config, store, upstream)

    def work(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
        from talaria.data import convert
        from talaria.data.convert_parts import join, shares
        from talaria.data.messages_parquet import MESSAGES

        data, target = inputs["download"] / "data", out_dir / MESSAGES
        every = shares(data, config.convert.shards)
        places = [folders.place(part) for part in range(len(every))]
        if all(place.is_dir() for place in places):
            rounds = [folders.place(part, FIRST_ROUND) for part in range(len(every))]
            facts = join(every, rounds, places, target, config.convert)
            if facts is not None:
                return convert.described(facts, data, target)
            target.unlink(missing_ok=True)
        return convert.run(config, inputs, out_dir)

    with in_use(folders.root):
        output = run_stage(STAGE, config, store, upstream, force=force, function=work)
    folders.remove()
    return output


def _data(upstream: Mapping[str, Output]) -> Path:
    return upstream["download"].path / "data"


def _folders(config: Config, store: Store, upstream: Mapping[str, Output]) -> PartFolders:
    return PartFolders.of(STAGE, config.convert.shards, config, store, {"download": upstream["download"]})
