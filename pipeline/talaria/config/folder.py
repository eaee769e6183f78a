"""Where configurations with a name are: a folder of the deployment's own, or those that Talaria ships."""

from __future__ import annotations

import os
from pathlib import Path

import talaria
from talaria.common.errors import ConfigError


def config_folder() -> Path:
    """Return TALARIA_CONFIGS, or the folder of the shipped configurations: in the wheel, or configs/ of the checkout."""
    if chosen := os.environ.get("TALARIA_CONFIGS"):
        return Path(chosen)
    package = Path(talaria.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def config_names() -> list[str]:
    """Return the names of the configurations in the folder, sorted."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_file(name: str) -> Path:
    """Return the file of a configuration in the folder. Names only, no paths: a trigger must not read files of its choice.

    Raises ConfigError for a name that the folder does not have.
    """
    if name not in config_names():
        raise ConfigError(f"unknown configuration {name!r}; {config_folder()} has {', '.join(config_names()) or 'none'}.")
    return config_folder() / f"{name}.yaml"


def find_config(path_or_name: Path) -> Path:
    """Return the file that somebody means on the command line: the path, or, for one word without a suffix, a name's file.

    A file that exists is always the path. Raises ConfigError for a word that is neither.
    """
    if path_or_name.is_file() or path_or_name.suffix or len(path_or_name.parts) != 1:
        return path_or_name
    return config_file(path_or_name.name)
