"""The disk that a run needs at least, against what is free."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.errors import UserError
from talaria.config.schema import Config
from talaria.store.store import Store
from talaria.workflow.forecast.base import BaseModel

_TOKEN_BYTES = 5
"""Of a token in an Arrow shard: its id and its mask."""


def needed(
    config: Config,
    store: Store,
    keys: Mapping[str, str],
    stages: Mapping[str, str],
    model: BaseModel,
    trained: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the bytes of what the run will write, by name, their sum, and the free bytes of the store's disk.

    Only what is known beforehand is counted, so the sum is a lower bound. What an interrupted attempt left counts as written.
    """
    parts: dict[str, int] = {}
    if stages.get("tokenize") == "runs" and trained.get("tokens") and not trained["estimated"]:
        parts["tokens"] = trained["tokens"] * _TOKEN_BYTES
    if model.size and stages.get("base") == "runs" and config.base.source != "local":
        parts["base model"] = model.size.stored_bytes
    if model.size and stages.get("train") == "runs":
        train = config.train
        saved = _checkpoints(config, trained.get("steps"))
        exports = 1 + (train.epochs if train.keep_epochs else 0) + (1 if train.keep_best else 0)
        parts[f"checkpoints ({saved})"] = saved * model.size.checkpoint_bytes(train)
        parts[f"models ({exports})"] = exports * model.size.stored_bytes
        if "train" in keys:
            parts["written already"] = -min(_bytes_in(store.work("train", keys["train"])), sum(parts.values()))
    parts = {name: count for name, count in parts.items() if count}
    return {"parts": parts, "bytes": sum(parts.values()), "free": _free(store.root), "path": str(store.root)}


def require_room(found: Mapping[str, Any]) -> None:
    """Raise UserError where more is needed than is free."""
    if found["bytes"] > found["free"]:
        parts = ", ".join(f"{name} {count / 1e9:.1f} GB" for name, count in found["parts"].items())
        raise UserError(
            f"{found['path']}: the run needs at least {found['bytes'] / 1e9:.1f} GB ({parts}), and "
            f"{found['free'] / 1e9:.1f} GB are free; free space (talaria store prune), lower train.keep_last, or move the store."
        )


def _checkpoints(config: Config, steps: int | None) -> int:
    """Return how many checkpoints lie there at once: the kept ones, and the next while it is written. Those that time saves are
    not counted."""
    train = config.train
    saves = train.epochs if train.max_steps is None else 1
    if steps is not None:
        saves = max(1, saves + steps // train.save_every - (steps % train.save_every == 0))
    return min(train.keep_last + 1, saves)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
