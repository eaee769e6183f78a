"""The settings as JSON schemas, for forms and for whoever triggers a run over REST."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from talaria.common.errors import ConfigError
from talaria.config.load import documentation, nested, sentence
from talaria.config.schema import Config

_KEPT = (
    "type",
    "enum",
    "const",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "maxLength",
)


def setting_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON schema of every setting under its dotted name: type, choices, bounds and description."""
    schema = Config.model_json_schema()
    return dict(_leaves(schema, schema["$defs"], ""))


def is_number(schema: Mapping[str, Any]) -> bool:
    """Tell whether a setting with this schema is a whole number or a fraction, perhaps null."""
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return bool({"integer", "number"} & set(kinds))


def _leaves(group: Mapping[str, Any], groups: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, found in group["properties"].items():
        if "$ref" in found:
            yield from _leaves(groups[found["$ref"].rpartition("/")[2]], groups, f"{prefix}{name}.")
            continue
        value, *_ = (one for one in found.get("anyOf", [found]) if one.get("type") != "null")
        kept = {key: value[key] for key in _KEPT if key in value}
        if "anyOf" in found:
            kept["type"] = [kept["type"], "null"]
        yield f"{prefix}{name}", kept | {"description": found.get("description", "")}


def check_overrides(overrides: Any) -> None:
    """Raise ConfigError, the sentence of the command line, for a setting that does not exist or a value that it cannot take.

    What only several settings together decide is not looked at.
    """
    if not isinstance(overrides, dict):
        raise ConfigError(f"expected settings like {{'train.epochs': 1}}, got {type(overrides).__name__}.")
    known = {name for name, _, _ in documentation()}
    for name, value in overrides.items():
        try:
            Config.model_validate({"name": "any"} | nested(name, value))
        except ValidationError as error:
            if name not in known or any(".".join(map(str, found["loc"])).startswith(name) for found in error.errors()):
                raise ConfigError(sentence(error)) from None
        if name not in known:
            raise ConfigError(f"{name} is a group of settings; name one of them, for example train.epochs.")
