"""A trace of some steps (train.profile_steps), to be opened in Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from torch.profiler import ProfilerActivity, profile, schedule

_SKIPPED = 2
"""Steps before the trace: the first ones build kernels and fill the allocator."""


class StepProfiler:
    """Traces `steps` steps of the main process into `folder`, once; a context manager around the training loop.

    Does nothing where `steps` is 0 or this is another rank.
    """

    def __init__(self, steps: int, folder: Path, *, is_main: bool) -> None:
        self.folder, self._done = folder, 0
        self._profile: profile | None = None
        if steps and is_main:
            plan = schedule(wait=_SKIPPED - 1, warmup=1, active=steps, repeat=1)
            self._profile = profile(activities=self._activities(), schedule=plan, on_trace_ready=self._write, record_shapes=True)

    def __enter__(self) -> StepProfiler:
        if self._profile:
            self._profile.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._profile:
            self._profile.stop()

    def step(self, number: int) -> None:
        """Say that step `number` is done."""
        self._done = number
        if self._profile:
            self._profile.step()

    def _write(self, done: profile) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(self.folder / f"until-step-{self._done:08d}.json"))

    @staticmethod
    def _activities() -> list[ProfilerActivity]:
        import torch

        return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
