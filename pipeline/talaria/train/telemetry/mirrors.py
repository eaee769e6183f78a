"""Metrics sent to Weights & Biases or TensorBoard as well (train.report_to), by accelerate's trackers.

MLflow has its own follower outside of the ranks (talaria.tracking), which a dead server cannot slow. These run in the main
process and are for those who look there already.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from talaria.common.errors import ConfigError

Service = Literal["wandb", "tensorboard"]
_PACKAGES: dict[Service, tuple[str, ...]] = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}


def require_installed(services: Sequence[Service]) -> None:
    """Raise ConfigError for a service whose package is not there."""
    for service in services:
        if not any(importlib.util.find_spec(package) for package in _PACKAGES[service]):
            package = _PACKAGES[service][0]
            raise ConfigError(f"train.report_to: {service} needs the package {package}, which is not installed; install it.")


class Mirrors:
    """accelerate's trackers of one run; none for ranks but the main process's."""

    def __init__(self, services: Sequence[Service], name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        self._trackers: list[Any] = []
        if not services:
            return
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's trackers ask it who the main process is
        plain = {key: value if isinstance(value, str | int | float | bool) else str(value) for key, value in settings.items()}
        for service in services:
            kind = LOGGER_TYPE_TO_CLASS[service]
            tracker = kind(name, logging_dir=folder) if kind.requires_logging_directory else kind(name)
            tracker.start()
            tracker.store_init_configuration(plain)
            self._trackers.append(tracker)

    def log(self, record: Mapping[str, Any], prefix: str = "train") -> None:
        """Send the numbers of a step or an evaluation."""
        numbers = {f"{prefix}/{key}": value for key, value in record.items() if isinstance(value, int | float) and key != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, step=record["step"])

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.finish()
