"""Run all stages, then register and promote, without Airflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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

    `on_line` gets progress lines; `train` replaces the function of the stage `train`, to show its progress.
    """
    from talaria.base_model.stage import require_trainable_base
    from talaria.registry.promotion import promote
    from talaria.registry.register import register
    from talaria.tracking.mlflow_client import tracking_uri

    if config.renamed:
        on_line(config.renamed)
    require_trainable_base(config)
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
