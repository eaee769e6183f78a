"""AdamW whose masters and moments lie in host memory (ZeRO-Offload: Ren et al., 2021) and pass through the device in an update.

The update itself is the device's, so a run is the same to the bit as one that keeps its state there. Copies in both directions
go on beside each other, and beside the step: the first chunks come while the backward pass gives memory back, and the last
ones leave while the next forward pass fills it again.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from talaria.train.optim.adamw import AdamW, AdamWScalars
from talaria.train.optim.bf16_masters import join_halves, split_halves

CHUNK = 1 << 26
"""Most elements that are copied at a time, a multiple of 16: 0.6 GB of state."""
_LEAVING = 1 << 30
"""Bytes on their way back that are not waited for, so that the link to the host is never idle."""


@dataclass
class StateChunk:
    """Elements [start, stop) of this rank's stretch of parameter `index`, and where their state lies in host memory."""

    index: int
    start: int
    stop: int
    master: Tensor | None
    """fp32, or, while `split`, in its first half the 16 bits that the weight lacks of it; None where the weight is the master."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    last: bool
    """Whether no other chunk of this parameter follows."""
    split: bool = False

    @property
    def low_bits(self) -> Tensor | None:
        return None if self.master is None else self.master.view(torch.int16)[: len(self.master)]

    def parts(self) -> list[Tensor]:
        """What an update reads."""
        master = self.low_bits if self.split else self.master
        return [part for part in (self.exp_avg, self.exp_avg_sq, master) if part is not None]

    @property
    def bytes(self) -> int:
        return sum(part.nbytes for part in self.parts())


@dataclass
class _Passing:
    """A chunk's copy on the device, and the event after which it is there or may go."""

    chunk: StateChunk
    parts: list[Tensor] = field(default_factory=list)
    event: Any = None


class OffloadedAdamW(AdamW):
    """`adopt` is to be called before the first step; `device_room` returns how many bytes of the device may be taken.

    away: indices of the parameters whose state lies in host memory (absent: all); the others' is resident.
    """

    def __init__(self, *args: Any, device_room: Callable[[], int], away: Collection[int] | None = None, **how: Any) -> None:
        self.whole = away is None
        """Whether no state is resident."""
        self.away = frozenset(range(len(args[0])) if away is None else away)
        super().__init__(*args, **how)
        self.groups = [resident for group in self.groups if (resident := [i for i in group if i not in self.away])]
        self.device, self.device_room = self.params[0].device, device_room
        self.chunks: list[StateChunk] = []
        self._next = 0
        self._coming: deque[_Passing] = deque()
        self._leaving: deque[_Passing] = deque()
        cuda = self.device.type == "cuda"
        self._inward, self._outward = (torch.cuda.Stream(self.device) if cuda else None for _ in range(2))  # type: ignore[no-untyped-call]

    def moment(self, index: int) -> Tensor:
        return torch.empty(0, dtype=self.state_dtype) if index in self.away else super().moment(index)  # `adopt` has the real one

    @torch.no_grad()
    def adopt(self, masters: Sequence[Tensor], exp_avg: Sequence[Tensor], exp_avg_sq: Sequence[Tensor]) -> None:
        """Keep the state that is away in these flat tensors of host memory from now on, in ascending order of parameters.

        The moments are zero.
        """
        for index, master, *moments in zip(sorted(self.away), masters, exp_avg, exp_avg_sq, strict=True):
            self.exp_avg[index], self.exp_avg_sq[index] = moments
            low = self.low_bits[index]
            if low is not None:
                super().copy_master(index, master)
                low.untyped_storage().resize_(0)  # whoever else knows it
                self.low_bits[index] = low.new_empty(0)
            # The kernel is compiled anew for counts that are no multiple of 16, and then rounds some bf16 moments otherwise.
            size = CHUNK if len(master) % 16 == 0 else len(master)
            for start in range(0, len(master), size):
                piece = slice(start, min(start + size, len(master)))
                m, v = (moment[piece] for moment in moments)
                own = None if low is None else master[piece]
                self.chunks.append(StateChunk(index, piece.start, piece.stop, own, m, v, piece.stop == len(master)))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], lr: float, scale: float) -> None:
        """What is away first, so that its way back is beside the update of what is resident."""
        self.release()
        self._update_away(grads, AdamWScalars.of(self.settings, self.steps_done + 1, lr, scale))
        super().step(grads, lr, scale)

    def _update_away(self, grads: Sequence[Tensor], shared: AdamWScalars) -> None:
        room = self.device_room()
        while self._coming or self._next < len(self.chunks):
            room = self._fetch(room, at_least_one=not self._coming)
            passing = self._coming.popleft()
            self._wait(passing)
            chunk = passing.chunk
            scalars = shared.of_parameter(chunk.index, self.decays[chunk.index])
            self._update(passing, grads[chunk.index].view(-1)[chunk.start : chunk.stop], scalars)
            self._send_back(passing)
            if chunk.last:
                self.updated([chunk.index])
        self._next = 0

    def prefetch(self) -> None:
        """Begin to fetch what the next update reads, as far as there is room."""
        self.release()
        self._fetch(self.device_room(), at_least_one=False)

    def release(self, share: int = 1) -> None:
        """Give the device back, once it has left, one part in `share` of the memory that is on its way back."""
        left = self._on_the_way_back() * (share - 1) / share
        while self._on_the_way_back() > left:
            self._wait(self._leaving.popleft())

    def master(self, index: int) -> Tensor:
        if index not in self.away or self.low_bits[index] is None:
            return super().master(index)
        self.release()
        return torch.cat([self._joined(chunk) for chunk in self._chunks_of(index)])

    @torch.no_grad()
    def copy_master(self, index: int, target: Tensor) -> None:
        """Where all of the state is away it is the checkpoint too, and `target` a master's place in it: complete it there."""
        if index not in self.away or self.low_bits[index] is None:
            super().copy_master(index, target)
            return
        for chunk in self._chunks_of(index):
            if not self.whole:
                target[chunk.start : chunk.stop].copy_(self._joined(chunk), non_blocking=True)
            elif chunk.split and chunk.master is not None:
                chunk.master.copy_(self._joined(chunk), non_blocking=True)
                chunk.split = False

    @torch.no_grad()
    def set_master(self, index: int, value: Tensor) -> None:
        if index not in self.away:
            super().set_master(index, value)
            return
        part = self.part(index)
        for chunk in self._chunks_of(index):
            piece = value[chunk.start : chunk.stop].to(self.device)
            part[chunk.start : chunk.stop].copy_(piece if chunk.master is None else split_halves(piece)[0])
            if chunk.master is not None:
                chunk.master.copy_(piece)
                chunk.split = False
        self.updated([index])

    def _chunks_of(self, index: int) -> list[StateChunk]:
        return [chunk for chunk in self.chunks if chunk.index == index]

    def _joined(self, chunk: StateChunk) -> Tensor:
        """A chunk's master, on the device."""
        if chunk.split and (low := chunk.low_bits) is not None:
            return join_halves(self.part(chunk.index)[chunk.start : chunk.stop], low.to(self.device, non_blocking=True))
        assert chunk.master is not None
        return chunk.master.to(self.device, non_blocking=True)

    def _update(self, passing: _Passing, grad: Tensor, scalars: AdamWScalars) -> None:
        chunk = passing.chunk
        m, v, *rest = passing.parts
        if rest and not chunk.split:
            rest = passing.parts[2:] = [split_halves(rest[0])[1]]
            chunk.split = True
        param = self.part(chunk.index)[chunk.start : chunk.stop]
        self.apply(param, rest[0] if rest else None, grad, m, v, scalars, chunk.start)

    def _fetch(self, room: int, *, at_least_one: bool) -> int:
        """Begin to fetch chunks, in order, until the room is filled; returns what is left of it."""
        while self._next < len(self.chunks):
            chunk = self.chunks[self._next]
            while chunk.bytes > room and self._on_the_way_back() > _LEAVING:
                passing = self._leaving.popleft()
                room += passing.chunk.bytes
                self._wait(passing)
            if chunk.bytes > room and not at_least_one:
                break
            at_least_one = False
            room -= chunk.bytes
            self._coming.append(self._begin(chunk))
            self._next += 1
        return room

    def _begin(self, chunk: StateChunk) -> _Passing:
        # Allocated where the update runs, so that what its stream has freed can serve; the copy waits for that.
        found = _Passing(chunk, [torch.empty_like(part, device=self.device) for part in chunk.parts()])
        with self._beside(self._inward):
            for copy, part in zip(found.parts, chunk.parts(), strict=True):
                copy.copy_(part, non_blocking=True)
            found.event = self._inward.record_event() if self._inward else None
        return found

    def _send_back(self, passing: _Passing) -> None:
        with self._beside(self._outward):
            for copy, part in zip(passing.parts, passing.chunk.parts(), strict=True):
                part.copy_(copy, non_blocking=True)
            passing.event = self._outward.record_event() if self._outward else None
        self._leaving.append(passing)

    def _on_the_way_back(self) -> int:
        return sum(passing.chunk.bytes for passing in self._leaving)

    def _wait(self, passing: _Passing) -> None:
        """Let nothing that follows on the device's own stream begin before this copy is done; its memory is free for it."""
        if passing.event is not None:
            torch.cuda.current_stream(self.device).wait_event(passing.event)

    @contextlib.contextmanager
    def _beside(self, stream: Any) -> Any:
        """Run on this stream, after what the device's own has been given so far."""
        if stream is None:
            yield
            return
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            yield
