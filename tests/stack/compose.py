"""Reading docker-compose.yaml as compose does: variables, anchors and merges resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

OFFICIAL = {"postgres", "redis", "s3"}
"""Services whose images are not ours."""


def interpolate(text: str, values: Mapping[str, str]) -> str:
    """Compose's ${NAME}, ${NAME:-default}, ${NAME:?message} and $$, by the compose specification."""

    def value(match: re.Match[str]) -> str:
        if match["escaped"]:
            return "$"
        name, operator, rest = match["name"], match["operator"], match["rest"] or ""
        found = values.get(name, "")
        if not found and operator == ":?":
            raise KeyError(f"{name}: {rest}")
        return found or (interpolate(rest, values) if operator == ":-" else "")

    return re.sub(r"(?P<escaped>\$\$)|\$\{(?P<name>\w+)(?:(?P<operator>:-|:\?)(?P<rest>[^}]*))?\}", value, text)


def load_compose(path: Path, values: Mapping[str, str]) -> dict[str, Any]:
    """The compose file with anchors, merges and variables resolved."""

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: resolve(item) for key, item in node.items()}
        if isinstance(node, list):
            return [resolve(item) for item in node]
        return interpolate(node, values) if isinstance(node, str) else node

    document: dict[str, Any] = resolve(yaml.safe_load(path.read_text()))
    return document


def ours(document: Mapping[str, Any]) -> dict[str, Any]:
    """The services that run in our image."""
    return {name: service for name, service in document["services"].items() if name not in OFFICIAL}
