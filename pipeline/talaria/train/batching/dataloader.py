"""Load micro-batches ahead of time in a background thread.

While a step runs, the thread looks up the next steps' conversations in the memory-mapped shards, packs and pins them and
copies them to the device on a stream of its own. Batches depend on the plan alone, not on the depth.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from talaria.train.batching.packing import MicroBatch, pack
from talaria.train.batching.plan import Ints, Plan, StepPlan


class Conversations(Protocol):
    """The part of a split (talaria.tokenization.dataset.Tokens) that the loader needs."""

    rows: Ints

    def gather(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_], Ints]: ...


@dataclass(frozen=True)
class Prepared:
    """A step's plan and this rank's part of it, on the device."""

    plan: StepPlan
    batches: list[MicroBatch]
    copied: torch.cuda.Event | None

    def wait_for_copy(self) -> None:
        """Make the current stream wait for the copies, and keep their memory until it has used them."""
        if self.copied is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            for batch in self.batches:
                for tensor in batch.tensors().values():
                    tensor.record_stream(stream)


class Loader:
    """Iterates over (plan, this rank's micro-batches) from step `start` (from 0). A context manager: leaving stops the thread."""

    def __init__(
        self,
        tokens: Conversations,
        plan: Plan,
        *,
        rank: int,
        device: torch.device,
        start: int = 0,
        depth: int = 2,
        per_sample: bool = False,
        sources: Ints | None = None,
        spread: tuple[int, int] = (0, 1),
        on_size: Callable[[int, int], None] | None = None,
    ) -> None:
        """sources: int64[n], each conversation's source in a mixture; rank: among those that have micro-batches of their own;
        spread: which of how many ranks that share one's tokens this is; on_size: called in the thread, ahead of each micro-batch,
        with its number of conversations and the longest one's tokens."""
        self.tokens, self.plan, self.rank, self.device, self.start = tokens, plan, rank, device, start
        self.per_sample, self.sources, self.spread, self.on_size = per_sample, sources, spread, on_size
        self.wait_seconds = 0.0
        """Seconds that the last step waited for its batches."""
        self._ready: queue.Queue[Prepared | BaseException | None] = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="loader", daemon=True)

    def __enter__(self) -> Loader:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.05)

    def __iter__(self) -> Iterator[Prepared]:
        while True:
            asked = time.perf_counter()
            item = self._ready.get()
            self.wait_seconds = time.perf_counter() - asked
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            item.wait_for_copy()
            yield item

    def _fill(self) -> None:
        try:
            stream = None
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)  # at first a thread's is GPU 0, whose memory graphs built here would take
                stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            for step in self.plan.walk(self.start):
                self._put(self._prepare(step, stream))
                if self._stop.is_set():
                    return
            self._put(None)
        except BaseException as error:  # whatever it is, the training loop must see it
            self._put(error)

    def _put(self, item: Prepared | BaseException | None) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=0.1)
                return

    def _prepare(self, step: StepPlan, stream: torch.cuda.Stream | None) -> Prepared:
        for own in step.micro_batches[self.rank]:
            if self.on_size and len(own):
                self.on_size(len(own), int(self.plan.lengths[own].max()))
        batches = [self.pack(indices) for indices in step.micro_batches[self.rank]]
        if stream is None:
            return Prepared(step, batches, None)
        with torch.cuda.stream(stream):
            batches = [batch.pin().to(self.device, non_blocking=True) for batch in batches]
            return Prepared(step, batches, stream.record_event())

    def pack(self, indices: Ints) -> MicroBatch:
        """Return conversations as a micro-batch, or this rank's part of it, on the host."""
        batch = self._whole(indices) if len(indices) else filler()
        return batch if self.spread[1] == 1 else batch.part(*self.spread)

    def _whole(self, indices: Ints) -> MicroBatch:
        ids, mask, offsets = self.tokens.gather(indices)
        sources = None if self.sources is None else self.sources[indices]
        return pack(ids, mask, np.diff(offsets), self.tokens.rows[indices], per_sample=self.per_sample, sources=sources)


def filler() -> MicroBatch:
    """Return a batch of one token without a target, for a rank with nothing to do in a round."""
    return pack(np.zeros(1, np.int32), np.zeros(1, np.bool_), [1], np.empty(0, np.int64))
