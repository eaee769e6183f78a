"""The job of a run and the state of its loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.base_model.tokenizer_fit import tokenizer_of
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
        return tokenizer_of(self.tokens, self.base)

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

    @classmethod
    def of(cls, progress: Mapping[str, Any]) -> TrainState:
        """Read what a checkpoint's marker says. Raises ValueError or TypeError where that is no state of a run."""
        state = cls(**{name: value for name, value in progress.items() if name != "world_size"})
        counts = (state.step, state.best_step, state.evaluated, state.without_gain, progress["world_size"])
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"its counters are {counts}")
        if not all(loss is None or isinstance(loss, int | float) for loss in (state.best_loss, state.last_loss)):
            raise ValueError("its losses are no numbers")
        return state
