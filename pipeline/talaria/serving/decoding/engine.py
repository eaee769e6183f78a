"""The thread that answers: all requests at once, a token each a step, none waiting for another's answer to end."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from talaria.serving.decoding.answer_text import AnswerText
from talaria.serving.decoding.batch import FAILED, Batch, Generation, TextPiece
from talaria.serving.decoding.loaded_model import LoadedModel
from talaria.serving.decoding.sampling import Sampler, Sampling, pick_all

log = logging.getLogger(__name__)
_READ_AT_ONCE = 4096
"""Tokens of prompts that are read between two steps, so that a burst of long ones does not stop the answers for long."""
_FRESH_SECONDS = 5.0
"""A step this young shows that the engine answers."""


class Full(Exception):
    """More answers wait than may."""


class Retired(Exception):
    """The engine takes no more: another one has its place."""


@dataclass(frozen=True)
class Limits:
    """What bounds an engine's memory, and the time that a request waits."""

    rows: int = 64
    """Answers at the same time."""
    cached_tokens: int = 36_864
    """Most tokens of all these, prompts, answers to come and padding: four times evaluate.batch_tokens, as evaluation has it."""
    waiting: int = 256
    """Most answers that wait for their turn."""


class Engine:
    """Answers with one model until it is retired; what it has taken by then it finishes."""

    def __init__(self, model: LoadedModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self._batch = Batch(model.hf, model.pad)
        self._waiting: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._retired = False
        self._last_step = 0.0
        self._thread = threading.Thread(target=self._run, name=f"engine-{model.version}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._batch.rows)

    @property
    def longest(self) -> int:
        """Most tokens of a prompt and its answer."""
        return min(self.model.context, self.limits.cached_tokens)

    def submit(self, generations: Sequence[Generation]) -> None:
        """Take these all, or none. Raises Full or Retired."""
        with self._changed:
            if self._retired:
                raise Retired
            if len(self._waiting) + len(generations) > self.limits.waiting:
                raise Full
            self._waiting += generations
            self._changed.notify()

    def retire(self) -> None:
        """Take no more. The thread ends with the last answer, and the model's memory is free then."""
        with self._changed:
            self._retired = True
            self._changed.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for a retired engine's thread; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def answers(self, timeout: float) -> bool:
        """Whether the model answers: a step was made just now, or one token comes within `timeout` seconds."""
        last = self._last_step
        if time.monotonic() - last < _FRESH_SECONDS:
            return True
        done, pieces = threading.Event(), list[TextPiece]()

        def deliver(piece: TextPiece) -> None:
            pieces.append(piece)
            done.set()

        probe = Generation(
            self.model.encode_prompt([{"role": "user", "content": "Hi"}]),
            1,
            Sampler(Sampling()),
            AnswerText(self.model.tokenizer, self.model.hidden),
            deliver,
            streamed=False,
        )
        with self._changed:
            self._waiting.appendleft(probe)
            self._changed.notify()
        if not done.wait(timeout):
            probe.cancelled = True
            return self._last_step > last  # the probe waited its turn behind others
        return pieces[-1].finish != FAILED

    @torch.inference_mode()
    def _run(self) -> None:
        while self._has_work():
            try:
                self._turn()
            except Exception:
                log.exception("The model failed; the answers that it was writing are lost.")
                lost, self._batch = self._batch.rows, Batch(self.model.hf, self.model.pad)
                for row in lost:
                    row.fail()
        self._batch = Batch(self.model.hf, self.model.pad)
        self.model.hf.to("meta")  # frees the weights; the rest is small

    def _has_work(self) -> bool:
        """Wait until there is something to do; false when there never will be again."""
        with self._changed:
            while not (self._waiting or self._batch.rows or self._retired):
                self._changed.wait()
            return bool(self._waiting or self._batch.rows)

    def _turn(self) -> None:
        """Take in what waits, and write one token of every answer."""
        self._batch.drop([row for row in self._batch.rows if row.cancelled])
        if new := self._admitted():
            self._progress(new, self._reading(new))
        if self._batch.rows:
            self._progress(list(self._batch.rows), self._batch.step())
        self._last_step = time.monotonic()

    def _reading(self, new: list[Generation]) -> Tensor:
        try:
            return self._batch.join(new)
        except Exception:
            for row in new:
                if row not in self._batch.rows:
                    row.fail()
            raise

    def _admitted(self) -> list[Generation]:
        """Take from the queue what there is room for, first come, first served."""
        new: list[Generation] = []
        with self._changed:
            while self._waiting:
                row = self._waiting[0]
                if not row.cancelled and not self._has_room(new, row):
                    break
                self._waiting.popleft()
                if not row.cancelled:
                    new.append(row)
        return new

    def _has_room(self, new: Sequence[Generation], row: Generation) -> bool:
        """Whether a row fits beside those that are written and the `new` ones, all of them at their longest."""
        rows = [*self._batch.rows, *new, row]
        if len(rows) > self.limits.rows:
            return False
        prompts = [len(one.prompt) for one in (*new, row)]
        width = max(self._batch.width, *prompts) + max(one.left for one in rows)
        within = len(rows) * width <= self.limits.cached_tokens
        return within and (not new or len(prompts) * max(prompts) <= _READ_AT_ONCE)

    def _progress(self, rows: list[Generation], logits: Tensor) -> None:
        tokens = pick_all([row.sampler for row in rows], logits)
        ends: Any = self.model.ends
        self._batch.drop([row for row, token in zip(rows, tokens, strict=True) if row.take(token, ends)])
