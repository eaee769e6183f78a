"""Ranks that follow a script, for sweeps: held-out losses by learning rate, and nothing learned."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.config.schema import Config
from talaria.launch.diagnosis import Preempted
from talaria.process.supervisor import Stop
from talaria.runs.folder import EVALS, RunFolder
from talaria.runs.jsonl import read_rows

from tests.support import tiny_pipeline

CURVES = {  # learning rate -> held-out loss after each of four steps
    0.1: [3.0, 2.0, 1.5, 1.2],
    0.2: [3.2, 2.4, 1.9, 1.6],
    0.3: [3.6, 1.8, 1.4, 1.1],  # above the median of the first two at step 1, so that nobody learns how good it gets
    0.4: [3.1, 2.1, 1.6, 0.9],
    0.5: [2.9, 2.5, 2.4, 2.3],
    0.6: [3.0, float("nan")],
}


class Ranks:
    """Stands for `launch.stage.run`: writes what ranks write, and goes on from what is there."""

    def __init__(self, killed_at: tuple[float, int] | None = None) -> None:
        self.steps: list[tuple[float, int]] = []
        """(learning rate, step) of every step that was made, in order."""
        self.killed_at = killed_at

    def __call__(
        self, config: Config, inputs: Mapping[str, Path], out_dir: Path, *, stop: Stop, on_look: Any, **_: Any
    ) -> dict[str, Any]:
        lr, folder = config.train.lr, RunFolder(out_dir)
        folder.set_status("running", total_steps=4, step=0)
        for step, loss in list(enumerate(CURVES[lr], 1))[len(read_rows(out_dir / EVALS)) :]:
            if loss != loss:
                folder.fail(f"step {step}: loss nan", "user", step, rows=[7])
                raise DataError(f"step {step}: loss nan")
            self.steps.append((lr, step))
            folder.metrics({"step": step, "epoch": step / 2, "loss": loss, "time": 1.7e9 + step})
            folder.evaluation({"step": step, "epoch": step / 2, "loss": loss, "time": 1.7e9 + step})
            on_look(out_dir)
            killed = self.killed_at == (lr, step)
            if stop.requested or killed:
                folder.set_status("preempted", step=step)
                raise Preempted("stopped")
        shutil.copytree(inputs["base"], out_dir / "model", ignore=shutil.ignore_patterns("manifest.json"))
        (out_dir / "model" / "README.md").write_text("card")
        folder.set_status("done", step=4)
        return {"steps": 4}


def configured(*rates: float, references: int = 2) -> Config:
    return tiny_pipeline.config(
        download={"rows": 60},
        registry={"model": "swept"},
        evaluate={"prompts": 1, "max_new_tokens": 1},
        sweep={"values": {"train.lr": list(rates)}, "references": references},
    )
