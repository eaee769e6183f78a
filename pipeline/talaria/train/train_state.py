"""What a run is asked to do, and where it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from talaria.runs.folder import EXPORTS, step_folder

if TYPE_CHECKING:
    from talaria.config.schema import Config


@dataclass(frozen=True)
class TrainJob:
    """What to train, from what, and where to."""

    config: Config
    tokens: Path
    base: Path
    output: Path

    @property
    def tokenizer(self) -> Path:
        """The tokens' own tokenizer, or the base model's for a data set that came without one."""
        return self.tokens / "tokenizer" if (self.tokens / "tokenizer").is_dir() else self.base

    def export(self, step: int) -> Path:
        """The folder of a kept model."""
        return step_folder(self.output / EXPORTS, step)


@dataclass(frozen=True)
class TrainState:
    """Where a run is: all that a checkpoint holds beside tensors."""

    step: int = 0
    best_loss: float | None = None
    best_step: int = 0
    evaluated: int = 0
    """The step of the last evaluation."""
    without_gain: int = 0
    """Evaluations since the best."""
    last_loss: float | None = None
