"""Run one stage in the store, or reuse its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.config.schema import Config
from talaria.stages.table import STAGES, inputs_of, key_of, resolve
from talaria.store.store import Output, Store


def made_before(name: str, config: Config, store: Store, upstream: Mapping[str, Output]) -> Output | None:
    """Return the stage's output where it is in the store and nothing is left to do; None where the stage has to run.

    A store with a copy on object storage always has something to do: a copy that is missing is made. Raises what the stage's
    fingerprint raises.
    """
    if store.remote is not None:
        return None
    key, _ = key_of(STAGES[name], config, {name: output.key for name, output in upstream.items()})
    return store.here(name, key)


def run_stage(
    name: str,
    config: Config,
    store: Store,
    upstream: Mapping[str, Output],
    *,
    force: bool = False,
    function: Callable[[Config, Mapping[str, Path], Path], dict[str, Any]] | None = None,
) -> Output:
    """Run one stage in the store, or reuse what an earlier run with the same key left there.

    Raises UserError where `upstream` lacks a stage that this one reads.
    `function` replaces the stage's own function and must make the same output (workflow/tokenize_parts.py).
    """
    stage = STAGES[name]
    if missing := [needed for needed in inputs_of(stage, config) if needed not in upstream]:
        raise UserError(f"the stage {name} reads the output of {missing[0]}, which is not among its inputs; add it.")
    key, described = key_of(stage, config, {name: output.key for name, output in upstream.items()})
    folders = {name: upstream[name].path for name in inputs_of(stage, config)}
    return store.run(
        name,
        key,
        lambda out_dir: (function or resolve(stage.function))(config, folders, out_dir),
        described_by=described,
        resumable=stage.resumable,
        unlisted=stage.unlisted,
        force=force,
        reads=folders.values(),
    )
