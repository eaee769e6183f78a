"""A function that a setting names as 'module:name'. Since it runs whatever it likes, a deployment has to allow it."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from talaria.common.errors import ConfigError
from talaria.common.files import digest, file_digest

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
    """sha256 of the module that holds the function, and of the user's modules that it imports, directly or through others.

    Installed packages do not count. A module that imports none of the user's has its file's digest. Raises ConfigError as
    `load_function` does.
    """
    own = Path(inspect.getfile(load_function(setting, dotted)))
    imported = {name: file for name, file in _own_imports(dotted.partition(":")[0]).items() if not file.samefile(own)}
    if not imported:
        return file_digest(own)
    return digest({"module": file_digest(own), "imports": {name: file_digest(file) for name, file in imported.items()}})


_INSTALLED = tuple(Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


def _own_imports(module: str) -> dict[str, Path]:
    """The files, by module, that importing a module may run, of the folders where nothing is installed; read, not run."""
    folders = [folder for folder in sys.path if not any(Path(folder).is_relative_to(place) for place in _INSTALLED)]
    finder = ModuleFinder(folders, excludes=["talaria", "talaria_airflow"])
    try:
        finder.import_hook(module)
    except ImportError:  # not in a folder of the path: an installed package, whose version the user changes knowingly
        return {}
    return {name: Path(file) for name, found in finder.modules.items() if (file := getattr(found, "__file__", None))}
