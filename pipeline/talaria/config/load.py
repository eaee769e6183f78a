"""Make a configuration from a YAML file, overrides and the trigger form; every mistake in it is one sentence.

The settings themselves and their defaults are in schema.py.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from talaria.common.errors import ConfigError
from talaria.common.printable import printable
from talaria.config.schema import Config
from talaria.config.section import Section
from talaria.config.yaml_reader import read_yaml

_SHOWN = reprlib.Repr()
"""Shows the value that a sentence quotes, of any size and depth, in a few words."""
_SHOWN.maxstring = 80

_ELSEWHERE = {
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "batch_size": "train.global_batch",
    "per_device_train_batch_size": "train.global_batch",
    "gradient_accumulation_steps": "train.global_batch",
    "max_seq_length": "tokenize.max_tokens",
    "max_length": "tokenize.max_tokens",
    "warmup_ratio": "train.warmup_fraction",
    "max_grad_norm": "train.clip",
    "lr_scheduler_type": "train.schedule",
    "save_steps": "train.save_every",
    "eval_steps": "train.eval_every",
}
"""Names that transformers and TRL give to settings of ours."""


def load(path: str | Path, overrides: Mapping[str, Any] | Iterable[str] = ()) -> Config:
    """Read a YAML file and apply overrides (`{"train.lr": 1e-4}` or `["train.lr=1e-4"]`).

    Raises ConfigError, one sentence that names the file and the setting.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text in UTF-8.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ConfigError(f"{path}: cannot read the configuration: {getattr(error, 'strerror', None) or error}.") from None
    tree = read_yaml(text, str(path))
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
        raise ConfigError(printable(f"{origin}: {sentence(error)}")) from None


def _pairs(overrides: Mapping[str, Any] | Iterable[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        name, found, value = text.partition("=")
        if not found:
            raise ConfigError(f"override {text!r}: expected KEY=VALUE, for example train.lr=1e-5.")
        yield name.strip(), scalar(value)


def scalar(text: str) -> Any:
    """Return a value as YAML reads it; what is no YAML (`*.json`) is the text that was typed."""
    try:
        return read_yaml(text, "override")
    except ConfigError:
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


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """Return `{"train": {"lr": value}}` for `"train.lr"`."""
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return dict(value)


def sentence(error: ValidationError) -> str:
    """Return the first of a configuration's mistakes as a sentence that names the setting."""
    first, *others = error.errors(include_url=False)
    dotted = ".".join(str(part) for part in first["loc"])
    if first["type"] == "invalid_key":
        return f"{_SHOWN.repr(first['input'])}: a setting's name is text."
    if first["type"] == "extra_forbidden":
        return _unknown(dotted, first["loc"])
    reason = re.sub(r"^(Input|String|URL) should", "should", first["msg"].removeprefix("Value error, ").rstrip("."))
    also = f" (and {len(others)} more)" if others else ""
    if first["type"] == "missing":
        return f"{dotted} is not given{also}."
    if first["type"] == "model_type":
        reason = "should be a group of settings"
    if first["type"] == "path_type":
        reason = "should be a path"
    if first["type"] == "value_error":  # a sentence of ours, which quotes what it needs
        of_source = first["loc"][:1] == ("sources",) and len(first["loc"]) > 1
        return f"{dotted}: {reason}{also}." if of_source or reason.startswith("should") else f"{reason}{also}."
    return f"{dotted}: {reason}, got {_SHOWN.repr(first['input'])}{also}."


def _unknown(dotted: str, loc: tuple[int | str, ...]) -> str:
    known = [name for name, _, _ in documentation()]
    if dotted in known:  # a file has its groups one below the other
        group, _, rest = dotted.partition(".")
        return f"{dotted} is written as `{group}: {{{rest.replace('.', ': {')}: ...}}{'}' * rest.count('.')}` in a file."
    meant = _ELSEWHERE.get(str(loc[-1])) if loc[0] in ("train", loc[-1]) else None
    groups = [name for name in Config.model_fields if name not in known]
    near = [meant] if meant else difflib.get_close_matches(dotted.lower(), known + groups, n=1, cutoff=0.75)
    return f"unknown setting {dotted}" + (f"; did you mean {near[0]}?" if near else "; see docs/configuration.md.")


def documentation(model: type[Section] = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Return every setting: dotted name, default, meaning."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from documentation(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", "(required)" if field.is_required() else field.default, field.description or ""
