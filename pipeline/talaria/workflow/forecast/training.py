"""Estimate a training: steps, tokens, hours and cost, from the data that is there and from what trained before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from talaria.common.files import read_object
from talaria.config.schema import Config
from talaria.runs.catalog import list_runs
from talaria.runs.folder import CONFIG, METRICS, RunFolder
from talaria.runs.jsonl import tail
from talaria.runs.summary import finite
from talaria.store.store import Store
from talaria.tokenization.dataset import TRAIN
from talaria.tracking.system_metrics import cost
from talaria.workflow.forecast import sample
from talaria.workflow.forecast.base import BaseModel, flops_per_token
from talaria.workflow.forecast.ranks import Place

Facts = dict[str, Any]
_LOOKED_AT = 50  # earlier runs
_SPEED_OF = ("precision", "fp8", "max_tokens_per_device", "activation_checkpointing", "kernels", "lora")
"""Settings of `train` that decide how fast a rank is."""
_H100_PEAK = 989e12
_H100_SHARE = {("mixed", False): 0.55, ("bf16", False): 0.60, ("bf16", True): 0.79, ("mixed", True): 0.57}
"""(precision, fp8) -> share of the peak that one H100 reaches at Qwen3-4B's shape (docs/performance.md)."""
_SMALLEST = 5e8
"""Parameters below which nobody has measured that share."""


def estimate(
    config: Config, store: Store, keys: Mapping[str, str], stages: Mapping[str, str], model: BaseModel, where: Place
) -> Facts:
    """Return conversations, tokens, steps, hours, gpu_hours and cost, and where each number comes from; None for the unknown.

    `estimated`: conversations and tokens, and what follows from them, were scaled up from a sample.
    """
    data = _data(config, store, keys)
    if data["tokens"] is None and stages.get("train") == "runs":
        found = sample.estimate(config, store, keys, model.tokenizer)
        data |= {**found, "data_from": "estimated from the first rows", "estimated": True} if found else {}
    speed = _speed_of_earlier(config, store, where) or _measured_speed(config, model, where)
    facts: Facts = {**data, **_steps(config, data), **speed}
    if stages.get("train") != "runs":
        return facts | {"hours": 0.0, "gpu_hours": 0.0, "cost": 0.0 if config.registry.gpu_hour_price is not None else None}
    hours = gpu_hours = money = None
    if facts["trained_tokens"] and facts["tokens_per_second"]:
        hours = facts["trained_tokens"] / facts["tokens_per_second"] / 3600
        gpu_hours = hours * facts["gpus"]
    if gpu_hours is not None and config.registry.gpu_hour_price is not None:
        money = gpu_hours * config.registry.gpu_hour_price
    return facts | {"hours": hours, "gpu_hours": gpu_hours, "cost": money}


def _data(config: Config, store: Store, keys: Mapping[str, str]) -> Facts:
    """Conversations and tokens of the training split: counted where they are tokenised, else as earlier, else at most so many."""
    if made := store.here("tokenize", keys["tokenize"]) if "tokenize" in keys else None:
        return _counted(made.facts, "counted")
    for stage, _, manifest in store.outputs():
        if stage == "tokenize" and manifest.get("inputs", {}).get("convert") == keys.get("convert", ""):
            return _counted(manifest["facts"], "of the same conversations, tokenised with other settings")
    download = config.download
    rows = download.rows + download.tool_rows if download.source == "sample" and not config.sources else None
    if made := store.here("convert", keys["convert"]) if "convert" in keys else None:
        rows = sum(one["train"] for one in made.facts["sources"].values()) if config.sources else made.facts.get("rows")
    if rows is not None:
        return {
            "conversations": min(rows, config.convert.rows or rows),
            "tokens": None,
            "data_from": "at most, before tokenising",
            "estimated": False,
        }
    unknown = "not known before the data is tokenised"
    return {"conversations": config.convert.rows, "tokens": None, "data_from": unknown, "estimated": False}


def _counted(facts: Mapping[str, Any], told: str) -> Facts:
    counts = {name: facts.get(name) for name in ("conversations", "tokens")}
    return {name: value.get(TRAIN) if isinstance(value, Mapping) else None for name, value in counts.items()} | {
        "data_from": told,
        "estimated": False,
    }


def _steps(config: Config, data: Facts) -> Facts:
    """Steps and tokens of the whole training."""
    train, conversations, tokens = config.train, data["conversations"], data["tokens"]
    steps = math.ceil(conversations * train.epochs / train.global_batch) if conversations else None
    if train.max_steps is not None:
        steps = train.max_steps if steps is None else min(steps, train.max_steps)
    trained = None
    if steps and conversations and tokens:
        trained = round(tokens / conversations * min(steps * train.global_batch, conversations * train.epochs))
    return {"steps": steps, "trained_tokens": trained}


def _speed_of_earlier(config: Config, store: Store, where: Place) -> Facts | None:
    """Tokens a second as the latest training of the same base with the same settings made them, for as many ranks as now."""
    wanted = _decides_speed(config.model_dump(mode="json"))
    for run in list_runs(store.root)[:_LOOKED_AT]:
        if _decides_speed(read_object(run.folder / CONFIG)) != wanted:
            continue
        speeds = [speed for row in tail(run.folder / METRICS) if (speed := finite(row.get("tokens_per_second")))]
        then = RunFolder(run.folder).status().get("world_size") or 1
        if speeds:
            ranks = where.ranks or then
            on_gpus = cost(run.folder).get("gpu_hours", 0.0) > 0
            told = f"training {run.key[:8]} on {then} {'GPUs' if on_gpus else 'ranks on CPU'}"
            return _speed(statistics.median(speeds) * ranks / then, ranks if on_gpus else 0, told)
    return None


def _decides_speed(tree: Mapping[str, Any]) -> Any:
    train, base = tree.get("train"), tree.get("base")
    if not isinstance(train, Mapping) or not isinstance(base, Mapping):
        return None
    unlike = {"seed", "revision"}
    return {name: train.get(name) for name in _SPEED_OF}, {name: value for name, value in base.items() if name not in unlike}


def _measured_speed(config: Config, model: BaseModel, where: Place) -> Facts:
    """Tokens a second by the share of its peak that an H100 reached; of one card where it is not known how many train."""
    share, per_token = _H100_SHARE.get((config.train.precision, config.train.fp8)), flops_per_token(model)
    too_small = model.size is None or model.size.parameters < _SMALLEST
    if share is None or per_token is None or too_small or where.gpus == 0 or config.train.lora.rank:
        return _speed(None, 0, "speed unknown: no training like it was measured")
    cards = where.ranks or 1
    one = "one H100" if cards == 1 else f"{cards} H100"
    return _speed(cards * share * _H100_PEAK / per_token, cards, f"{one}, at {share:.0%} of its peak as measured for Qwen3-4B")


def _speed(tokens_per_second: float | None, gpus: int, told: str) -> Facts:
    return {"tokens_per_second": tokens_per_second, "gpus": gpus, "speed_from": told}
