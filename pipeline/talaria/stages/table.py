"""The stages of the pipeline: which there are, what each reads, and how one is run.

Every stage is one function, `run(config, inputs, out_dir) -> facts`, named here and imported only when it runs, so that
the CLI and the DAG files stay light. `config` is the whole Config, `inputs` maps a stage's name to its output folder,
`out_dir` is an empty folder (or, for a resumable stage, the folder as the last attempt left it).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from talaria.config.schema import Config
from talaria.store.store import output_key


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
    unlisted: tuple[str, ...] = ()
    """Folders that the manifest leaves out, since they carry digests of their own."""


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("download", 1, ("download",), (), "talaria.data.download:run", "talaria.data.download:fingerprint"),
        Stage("convert", 1, ("convert",), ("download",), "talaria.data.convert:run", "talaria.data.convert:fingerprint"),
        Stage("base", 1, ("base",), ("convert",), "talaria.base_model.stage:run", "talaria.base_model.stage:fingerprint"),
        Stage(
            "tokenize",
            1,
            ("tokenize",),
            ("convert", "base"),
            "talaria.tokenization.stage:run",
            "talaria.tokenization.stage:fingerprint",
        ),
        Stage("report", 1, (), ("download", "convert", "tokenize"), "talaria.report.stage:run"),
        Stage(
            "train",
            1,
            ("train",),
            ("tokenize", "base"),
            "talaria.launch.stage:run",
            "talaria.launch.stage:fingerprint",
            resumable=True,
            unlisted=("checkpoints/",),
        ),
        Stage(
            "evaluate",
            2,
            ("evaluate",),
            ("train", "tokenize", "base", "convert"),
            "talaria.evaluation.stage:run",
            "talaria.evaluation.stage:fingerprint",
        ),
    )
}


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """Return the stages whose outputs this stage reads with this configuration."""
    trains_tokenizer = config.base.source == "random" and config.base.tokenizer is None
    if stage.name == "base" and not trains_tokenizer:
        return ()
    return stage.inputs


def key_of(stage: Stage, config: Config, input_keys: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the key of a stage's output, and the values it is computed from (stored in the manifest)."""
    settings = {section: config.key_fields_of(section) for section in stage.reads}
    outside = resolve(stage.fingerprint)(config) if stage.fingerprint else None
    inputs = {name: input_keys[name] for name in inputs_of(stage, config)}
    described = {"settings": settings, "inputs": inputs, "outside": outside}
    return output_key(stage.name, stage.version, settings, inputs, outside), described


def planned_keys(config: Config) -> dict[str, str]:
    """Return the key of every stage for a run of this configuration now. Asks the hub for revisions; runs nothing."""
    keys: dict[str, str] = {}
    for name, stage in STAGES.items():
        keys[name], _ = key_of(stage, config, keys)
    return keys


def resolve(dotted: str) -> Callable[..., Any]:
    """Import and return the function named 'module:name'."""
    module, _, name = dotted.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
