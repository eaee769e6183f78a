"""Which names MLflow and a folder take, asked when the configuration is read rather than after the training."""

from __future__ import annotations

import re

_LONGEST = 200
"""Bytes of a name; files are called after it, and a file's name has at most 255."""
_NOT_IN_A_MODEL = re.compile(r"[/:%\"'\\`]|[^ -~\u00a1-\uffff]")
_NOT_IN_AN_EXPERIMENT = re.compile(r"[/\\]|[^ -~\u00a1-\uffff]|^\.+")


def check_model(name: str) -> str:
    """Return the name of a registered model. Raises ValueError, with the nearest allowed name."""
    return _check(name, _NOT_IN_A_MODEL, "should hold no slash, colon, percent sign, backslash, backtick or quote")


def check_experiment(name: str) -> str:
    """Return the name of an experiment, which is also a folder's. Raises ValueError, with the nearest allowed name."""
    return _check(name, _NOT_IN_AN_EXPERIMENT, "should be no path: no slash in it, and no dot at its beginning")


def model_name(name: str) -> str:
    """Return the name with dashes for dots, which MLflow does not take in a model's name: 'qwen3-1-7b' for 'qwen3-1.7b'."""
    return name.replace(".", "-")


def _check(name: str, refused: re.Pattern[str], rule: str) -> str:
    nearest = re.sub(r"-{2,}", "-", refused.sub("-", name)).strip(" -.") or "talaria"
    nearest = nearest.encode()[:_LONGEST].decode(errors="ignore")
    if refused.search(name) or name != name.strip() or not name:
        raise ValueError(f"{rule}; for example {nearest!r}")
    if len(name.encode()) > _LONGEST:
        raise ValueError(f"should have at most {_LONGEST} bytes; for example {nearest!r}")
    return name
