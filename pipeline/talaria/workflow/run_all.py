"""Run all stages, then register and promote, without Airflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from talaria.common.files import MANIFEST
from talaria.common.locks import in_use
from talaria.config.evaluation_settings import Promote
from talaria.config.schema import Config
from talaria.stages.run import run_stage
from talaria.stages.table import STAGES
from talaria.store.store import Output, Store


def run_all(
    config: Config,
    store: Store,
    *,
    force: bool = False,
    on_line: Callable[[str], None] = print,
    train: Callable[[Config, Mapping[str, Path], Path], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run every stage, then register and promote. Return the facts of each.

    Raises UserError, before anything is made, with a sentence for each thing that is certain to fail.
    `on_line` gets progress lines; `train` replaces the function of the stage `train`, to show its progress.
    """
    from talaria.registry.register import register
    from talaria.tracking.mlflow_client import tracking_uri
    from talaria.workflow.forecast.forecast import forecast, refuse

    if config.renamed:
        on_line(config.renamed)
    uri = tracking_uri(store.root)
    refuse(forecast(config, store, uri=uri, force=force))
    outputs: dict[str, Output] = {}
    with ExitStack() as stack:
        for name in STAGES:
            function = train if name == "train" else None
            outputs[name] = output = run_stage(name, config, store, outputs, force=force, function=function)
            stack.enter_context(in_use(output.path / MANIFEST))  # pruning leaves it alone until the last stage has read it
            on_line(f"{name:9} {'reused' if output.reused else f'{output.seconds:.1f} s'}  {output.path}")
        registered = register(config, {name: output.path for name, output in outputs.items()}, uri=uri)
        on_line(
            f"register  {'reused' if registered['reused'] else 'done'}  {registered['model']} version {registered['candidate']}"
        )
        promoted = decide(registered["model"], registered["candidate"], config.promote, uri)
        on_line(f"promote   {promoted['reason']}")
    return {name: output.facts for name, output in outputs.items()} | {"register": registered, "promote": promoted}


def decide(model: str, version: int, settings: Promote, uri: str) -> dict[str, Any]:
    """Let the gate decide, as `promote` does. Where a person is to be asked first, which only Airflow does, the version waits."""
    from talaria.registry.promotion.promote import preview, promote

    found = preview(model, version, settings=settings, uri=uri) if settings.approval else {}
    if not found.get("promoted"):
        return promote(model, version, settings=settings, uri=uri)
    reason = (
        f"Version {version} waits for a person, as promote.approval is set: "
        f"`talaria promote {model} {version} --config CONFIG` makes it the champion. {found['reason']}"
    )
    return {**found, "promoted": False, "waits": True, "previous": found["champion"], "reason": reason}
