"""The one way through the house: which stages there are, what each reads, and how one is run.

Every stage is one function, `run(config, inputs, out_dir) -> facts`, named here and imported only when it runs, so that
the CLI and the DAG files stay light. `config` is the whole Config, `inputs` maps a stage's name to its output folder,
`out_dir` is an empty folder (or, for a resumable stage, the folder as the last attempt left it).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.store import Output, Store, output_key


@dataclass(frozen=True)
class Stage:
    name: str
    version: int
    """Raised when the code changes what the stage writes."""
    reads: tuple[str, ...]
    """Sections of the configuration."""
    inputs: tuple[str, ...]
    function: str
    fingerprint: str | None = None
    """Function Config -> JSON value that pins what comes from outside the store (a commit, a digest)."""
    resumable: bool = False


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("download", 1, ("download",), (), "pipeline.data.download:run", "pipeline.data.download:fingerprint"),
        Stage("convert", 1, ("convert",), ("download",), "pipeline.data.convert:run", "pipeline.data.convert:fingerprint"),
        Stage("base", 1, ("base",), ("convert",), "pipeline.base:run", "pipeline.base:fingerprint"),
        Stage("tokenize", 1, ("tokenize",), ("convert", "base"), "pipeline.tokens.encode:run"),
        Stage("report", 1, (), ("download", "convert", "tokenize"), "pipeline.data.report:run"),
        Stage("train", 1, ("train",), ("tokenize", "base"), "pipeline.train.launch:run", resumable=True),
        Stage("evaluate", 1, ("evaluate",), ("train", "tokenize", "base"), "pipeline.evaluate:run"),
    )
}


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """The stages whose outputs this one takes under this configuration."""
    trains_tokenizer = config.base.source == "random" and config.base.tokenizer is None
    if stage.name == "base" and not trains_tokenizer:
        return ()
    return stage.inputs


def run_stage(name: str, config: Config, store: Store, upstream: Mapping[str, Output], *, force: bool = False) -> Output:
    """Run one stage in the store, or reuse what an earlier run with the same key left there."""
    stage = STAGES[name]
    inputs = {name: upstream[name] for name in inputs_of(stage, config)}
    key, described_by = describe(stage, config, {name: output.key for name, output in inputs.items()})
    folders = {name: output.path for name, output in inputs.items()}
    return store.run(
        name,
        key,
        lambda out_dir: resolve(stage.function)(config, folders, out_dir),
        described_by=described_by,
        resumable=stage.resumable,
        force=force,
    )


def describe(stage: Stage, config: Config, input_keys: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """A stage's key, and everything that the key stands for."""
    settings = {section: getattr(config, section).key_fields() for section in stage.reads}
    outside = resolve(stage.fingerprint)(config) if stage.fingerprint else None
    key = output_key(stage.name, stage.version, settings, input_keys, outside)
    return key, {"settings": settings, "inputs": dict(input_keys), "outside": outside}


def planned_keys(config: Config) -> dict[str, str]:
    """Stage -> the key that a run of this configuration would have now. Asks the hub for its commits, runs nothing."""
    keys: dict[str, str] = {}
    for stage in STAGES.values():
        keys[stage.name], _ = describe(stage, config, {name: keys[name] for name in inputs_of(stage, config)})
    return keys


def resolve(dotted: str) -> Callable[..., Any]:
    """'module:name' -> the function, imported now."""
    module, _, name = dotted.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
