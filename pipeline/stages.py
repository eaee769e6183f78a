"""The one way through the house: which stages there are, what each reads, and how one is run.

Every stage is one function, `run(config, inputs, out_dir) -> facts`, named here and imported only when it runs, so that
the CLI and the DAG files stay light. `config` is the whole Config, `inputs` maps a stage's name to its output folder,
`out_dir` is an empty folder (or, for a resumable stage, the folder as the last attempt left it).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
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
    unlisted: tuple[str, ...] = ()
    """Folders that the manifest leaves out, since they carry digests of their own."""


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("download", 1, ("download",), (), "pipeline.data.download:run", "pipeline.data.download:fingerprint"),
        Stage("convert", 1, ("convert",), ("download",), "pipeline.data.convert:run", "pipeline.data.convert:fingerprint"),
        Stage("base", 1, ("base",), ("convert",), "pipeline.base:run", "pipeline.base:fingerprint"),
        Stage("tokenize", 1, ("tokenize",), ("convert", "base"), "pipeline.tokens.encode:run"),
        Stage("report", 1, (), ("download", "convert", "tokenize"), "pipeline.data.report:run"),
        Stage(
            "train", 1, ("train",), ("tokenize", "base"), "pipeline.train.launch:run", resumable=True, unlisted=("checkpoints/",)
        ),
        Stage("evaluate", 1, ("evaluate",), ("train", "tokenize", "base"), "pipeline.evaluate:run"),
    )
}


def inputs_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """The stages whose outputs this one takes under this configuration."""
    trains_tokenizer = config.base.source == "random" and config.base.tokenizer is None
    if stage.name == "base" and not trains_tokenizer:
        return ()
    return stage.inputs


def key_of(stage: Stage, config: Config, input_keys: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The key of a stage's output, and what it stands for (kept in the manifest)."""
    settings = {section: getattr(config, section).key_fields() for section in stage.reads}
    outside = resolve(stage.fingerprint)(config) if stage.fingerprint else None
    inputs = {name: input_keys[name] for name in inputs_of(stage, config)}
    described = {"settings": settings, "inputs": inputs, "outside": outside}
    return output_key(stage.name, stage.version, settings, inputs, outside), described


def planned_keys(config: Config) -> dict[str, str]:
    """Stage -> the key that a run of this configuration would have now. Asks the hub for revisions, runs nothing."""
    keys: dict[str, str] = {}
    for name, stage in STAGES.items():
        keys[name], _ = key_of(stage, config, keys)
    return keys


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

    `function` makes the same output in another way than the stage's own function (see spread.py).
    """
    stage = STAGES[name]
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
    )


def run_all(
    config: Config,
    store: Store,
    *,
    force: bool = False,
    on_line: Callable[[str], None] = print,
    train: Callable[[Config, Mapping[str, Path], Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The whole way without Airflow: every stage, then register and promote. Returns each one's facts.

    `on_line` is told how it goes; `train` stands for the train stage's function, to show its progress.
    """
    from pipeline.registry.promotion import promote
    from pipeline.registry.register import register
    from pipeline.tracking.access import tracking_uri

    outputs: dict[str, Output] = {}
    for name in STAGES:
        function = train if name == "train" else None
        outputs[name] = output = run_stage(name, config, store, outputs, force=force, function=function)
        on_line(f"{name:9} {'reused' if output.reused else f'{output.seconds:.1f} s'}  {output.path}")
    uri = tracking_uri(store.root)
    registered = register(config, {name: output.path for name, output in outputs.items()}, uri=uri)
    on_line(f"register  {'reused' if registered['reused'] else 'done'}  {registered['model']} version {registered['candidate']}")
    promoted = promote(registered["model"], registered["candidate"], margin=config.promote.margin, uri=uri)
    on_line(f"promote   {promoted['reason']}")
    return {name: output.facts for name, output in outputs.items()} | {"register": registered, "promote": promoted}


def resolve(dotted: str) -> Callable[..., Any]:
    """'module:name' -> the function, imported now."""
    module, _, name = dotted.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
