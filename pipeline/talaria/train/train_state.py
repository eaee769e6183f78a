"""The job of a run and the state of its loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.runs.folder import EXPORTS, step_folder

if TYPE_CHECKING:
    from talaria.config.schema import Config


@dataclass(frozen=True)
class TrainJob:
    """The job: configuration, inputs and output folder of a training."""

    config: Config
    tokens: Path
    base: Path
    output: Path

    @property
    def tokenizer(self) -> Path:
        """Return the tokens folder's tokenizer, or the base model's if the folder has none."""
        return self.tokens / "tokenizer" if (self.tokens / "tokenizer").is_dir() else self.base

    def export(self, step: int) -> Path:
        """Return the folder of an exported model."""
        return step_folder(self.output / EXPORTS, step)


@dataclass(frozen=True)
class TrainState:
    """The state of the loop: everything in a checkpoint except tensors."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evaluated: int = 0
    """The step of the last evaluation."""
    without_gain: int = 0
    """Number of evaluations since the best one."""
    last_loss: float | None = None
