"""A function that a setting names as 'module:name'. Since it runs whatever it likes, a deployment has to allow it."""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talaria.common.errors import ConfigError
from talaria.common.files import file_digest

ALLOW = "TALARIA_ALLOW_CUSTOM_CODE"


def load_function(setting: str, dotted: str) -> Callable[..., Any]:
    """Raises ConfigError where the deployment does not allow it, or there is no such function."""
    if os.environ.get(ALLOW) != "1":
        raise ConfigError(f"{setting}: {dotted!r} is code of your own; set {ALLOW}=1 where it runs to allow it.")
    module, colon, name = dotted.partition(":")
    if not (module and colon and name):
        raise ConfigError(f"{setting}: should look like 'module:name', got {dotted!r}.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{setting}: cannot import {dotted!r} ({error}); its folder must be on PYTHONPATH.") from None
    if not inspect.isfunction(found):
        raise ConfigError(f"{setting}: {dotted!r} is no function.")
    function: Callable[..., Any] = found
    return function


def module_digest(setting: str, dotted: str) -> str:
    """sha256 of the module that holds the function: helpers beside it count too. Raises ConfigError as `load_function` does."""
    return file_digest(Path(inspect.getfile(load_function(setting, dotted))))
