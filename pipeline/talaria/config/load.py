"""A configuration from a YAML file, overrides and the trigger form, and every mistake in it as one sentence.

The settings themselves and their defaults are in config.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from talaria.common.errors import ConfigError
from talaria.config.schema import Config, Section


def load(path: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
    """Read a YAML file and apply overrides (`{"train.lr": 1e-4}` or `["train.lr=1e-4"]`).

    Raises ConfigError, one sentence that names the file and the setting.
    """
    path = Path(path)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}: not valid YAML{line}: {getattr(error, 'problem', None) or error}.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected settings like 'name: my-run', found {type(tree).__name__}.")
    tree.setdefault("name", path.stem)
    return override(tree, overrides, str(path))


def override(tree: dict[str, Any], overrides: Mapping[str, Any] | Iterable[str], origin: str) -> Config:
    """Validate a nested mapping after setting some of its values; `origin` is named in errors."""
    for name, value in _pairs(overrides):
        _assign(tree, name, value)
    return parse(tree, origin)


def parse(tree: Any, origin: str) -> Config:
    """Validate a nested mapping; `origin` is named in the error."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {_sentence(error)}") from None


def _pairs(overrides: Mapping[str, Any] | Iterable[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        name, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"override {text!r}: expected KEY=VALUE, for example train.lr=1e-5.")
        yield name.strip(), _scalar(value)


def _scalar(text: str) -> Any:
    """A value as YAML reads it; pydantic turns '1e-5' into the number everybody means."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if child is None:
            child = tree[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {dotted}: {parent} holds a value, not settings.")
        tree = child
    tree[leaf] = value


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(dotted, [name for name, _, _ in documentation()], n=1)
        return f"unknown setting {dotted}" + (f"; did you mean {near[0]}?" if near else "; see docs/configuration.md.")
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").rstrip(".")
    if first["type"] == "value_error":
        return f"{reason}."
    more = len(error.errors()) - 1
    also = f" (and {more} more)" if more else ""
    return f"{dotted}: should be {reason}, got {first['input']!r}{also}."


def documentation(model: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Every setting: dotted name, default, meaning."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from documentation(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "(required)" if field.is_required() else field.default, field.description or ""
