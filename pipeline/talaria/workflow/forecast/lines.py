"""A forecast as lines for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from talaria.runs.summary import duration


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each part of a forecast that is known; its problems are an exception's (forecast.refuse)."""
    by_state: dict[str, list[str]] = {}
    for stage, state in facts["stages"].items():
        by_state.setdefault(state, []).append(stage)
    for state, stages in by_state.items():
        yield _line("stages", f"{state}: {', '.join(stages)}")
    if facts["base"]["model_type"]:
        yield _line("base", _base(facts["base"]))
    yield _line("data", _data(facts["training"]))
    yield _line("training", _training(facts["training"], facts["stages"].get("train") != "runs"))
    if facts["memory"]["state_bytes"]:
        yield _line("memory", _memory(facts["memory"]))
    disk = facts["disk"]
    parts = ", ".join(f"{name} {_size(count)}" for name, count in disk["parts"].items())
    least = f"at least {_size(disk['bytes'])} ({parts}); " if parts else ""
    yield _line("disk", f"{least}{_size(disk['free'])} free at {disk['path']}")
    if facts["mlflow"]:
        yield _line("MLflow", f"{facts['mlflow']['address']}, experiment {facts['mlflow']['experiment']}, model {facts['model']}")


def _base(base: Mapping[str, Any]) -> str:
    size = f", {base['parameters']:,} parameters, {_size(base['bytes'])}" if "parameters" in base else ""
    return f"{base['origin']}: {base['model_type']}{size}"


def _data(training: Mapping[str, Any]) -> str:
    named = (("conversations", training["conversations"]), ("tokens", training["tokens"]))
    about = "about " if training["estimated"] else ""
    known = ", ".join(f"{about}{value:,} {name}" for name, value in named if value is not None)
    return f"{known} ({training['data_from']})" if known else training["data_from"]


def _training(training: Mapping[str, Any], reused: bool) -> str:
    if reused:
        return "none: its output is there"
    about = "about " if training["estimated"] else ""
    parts = [
        f"{about}{value:,} {name}"
        for name, value in (("steps", training["steps"]), ("tokens", training["trained_tokens"]))
        if value
    ]
    if training["tokens_per_second"]:
        parts.append(f"{training['tokens_per_second']:,.0f} tokens/s ({training['speed_from']})")
    else:
        parts.append(training["speed_from"])
    if training["hours"] is not None:
        parts.append(f"about {duration(3600 * training['hours'])} without evaluations and checkpoints")
    if training["gpu_hours"]:
        parts.append(f"{training['gpu_hours']:.1f} GPU-hours")
    if training["cost"] is not None:
        parts.append(f"cost {training['cost']:.2f}")
    return ", ".join(parts)


def _memory(memory: Mapping[str, Any]) -> str:
    of = f" of {_size(memory['device_bytes'])}" if memory["device_bytes"] else ""
    return f"at least {_size(memory['state_bytes'])} of state on each of {memory['ranks']} ranks{of}, and activations"


def _size(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _line(name: str, text: str) -> str:
    return f"{name:<9} {text}"
