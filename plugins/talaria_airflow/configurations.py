"""Find the configurations that a run can name."""

from __future__ import annotations

import os
from pathlib import Path

from talaria.common.errors import ConfigError


def config_folder() -> Path:
    """TALARIA_CONFIGS, or the repository's configs/."""
    return Path(os.environ.get("TALARIA_CONFIGS") or Path(__file__).resolve().parents[2] / "configs")


def config_names() -> list[str]:
    """Configurations that a run can name."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def config_file(name: str) -> Path:
    """The file of a configuration. Names only, no paths: a trigger must not read files of its choice."""
    if name not in config_names():
        raise ConfigError(f"unknown configuration {name!r}; {config_folder()} has {', '.join(config_names()) or 'none'}.")
    return config_folder() / f"{name}.yaml"


def default_config() -> str:
    """What the trigger form of the DAG `sft` starts with: TALARIA_CONFIG, or tiny, or the first."""
    names = config_names()
    return os.environ.get("TALARIA_CONFIG") or ("tiny" if "tiny" in names else next(iter(names), "tiny"))
