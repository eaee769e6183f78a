"""Host memory between the device and the disk: fp32 masters and Adam state, as a checkpoint holds them.

Each rank stages what it updates, in one block or in two by turns; together the ranks stage the whole state. What a part is does
not depend on how ranks share the model: a stretch of a flattened parameter, which is what makes resuming on others possible.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talaria.train.checkpoint.host_block import HostBlock, fits, whole_pages
from talaria.train.optim.adamw import AdamW
from talaria.train.optim.offload import OffloadedAdamW
from talaria.train.optim.span import ParamSpan

KINDS = ("param", "exp_avg", "exp_avg_sq")
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_QUEUED = 32
"""Tensors whose copies are in a device's queue at a time."""
_FILE_BYTES = 4 << 30
"""A file is closed once it holds so much."""


@dataclass(frozen=True)
class Part:
    """This rank's stretch of one flattened tensor of the state: "param.", "exp_avg." or "exp_avg_sq." + a parameter's name."""

    name: str
    kind: str
    index: int
    """Of the parameter."""
    dtype: torch.dtype
    span: ParamSpan
    start: int
    """Its first byte in a block."""

    @property
    def bytes(self) -> int:
        return self.span.count * self.dtype.itemsize


class Staging:
    """`names`, `optimizer`: of the trained parameters. `folder`: where blocks survive this process, if anywhere; `sharers`: how
    many ranks put theirs there.

    There are two `blocks` where two `copies` are wanted and the folder has room for them; none is locked yet. Where the optimizer
    keeps all of the state in host memory, there is one, which is the state itself.
    """

    def __init__(
        self,
        names: list[str],
        optimizer: AdamW,
        device: torch.device,
        folder: Path | None,
        rank: int,
        *,
        copies: int = 1,
        sharers: int = 1,
    ) -> None:
        self.optimizer, self.device = optimizer, device
        self.parts: list[Part] = []
        size = 0
        for index, name in enumerate(names):
            span, state = optimizer.spans[index], optimizer.exp_avg[index].dtype
            for kind in KINDS:
                dtype = optimizer.master_dtype(index) if kind == "param" else state
                self.parts.append(Part(f"{kind}.{name}", kind, index, dtype, span, size))
                size += whole_pages(self.parts[-1].bytes)
        starts = [part.start for part in self.parts]
        how: dict[str, Any] = {"folder": folder, "device": device, "starts": starts}
        self.blocks = [HostBlock(size, name=f"rank-{rank}", **how)]
        again, others = f"rank-{rank}-again", (copies * sharers - 1) * size
        if copies > 1 and folder and self.blocks[0].path and fits(folder / again, size, others):
            self.blocks.append(HostBlock(size, name=again, **how))
        self.place = 0
        """Which block holds the newest state, or gets it now."""
        self.is_state = isinstance(optimizer, OffloadedAdamW) and optimizer.whole
        if isinstance(optimizer, OffloadedAdamW) and optimizer.whole:
            self.block.lock()
            self.block.ready()
            optimizer.adopt(*([self.view(part) for part in self.parts if part.kind == kind] for kind in KINDS))
        # Before what the step has queued: the halves of masters are joined by small kernels, which would wait behind large ones.
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._copied = threading.Event()
        self._copied.set()

    @property
    def block(self) -> HostBlock:
        return self.blocks[self.place]

    def lock(self, order: Sequence[int]) -> None:
        """Begin to lock the blocks, all but the first once a step is made, where they are not the state and so locked by now."""
        before = None
        for place in () if self.is_state else order:
            self.blocks[place].lock(after=before)
            before = self.blocks[place]

    def begin(self, place: int) -> None:
        """Say that the state is to be copied to a block as it is now; `copy` does it."""
        self.place = place
        self.block.ready()
        self.optimizer.release()
        self._copied.clear()
        if self._stream:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))

    @torch.no_grad()
    def copy(self) -> None:
        """Copy the state from the device, beside whatever runs there; `fence` is for what changes it. From any thread."""
        try:
            if self._stream:  # what the optimizer keeps in host memory itself is copied by the host
                self._stream.synchronize()
            with torch.cuda.stream(self._stream):  # None: as it is
                for number, part in enumerate(self.parts, start=1):
                    self._copy_out(part)
                    if self._stream and (number % _QUEUED == 0 or number == len(self.parts)):
                        self._stream.synchronize()  # a full queue would hold up the step's own launches
        finally:
            self._copied.set()

    def fence(self) -> None:
        """Wait until the copy under way, if any, has read what an update would change. The first update lets all be locked."""
        for block in self.blocks:
            block.want()
        self._copied.wait()

    @torch.no_grad()
    def put_back(self) -> None:
        """From the block in `place` to the device."""
        self.block.ready()  # from locked memory it goes five times as fast
        for part in self.parts:
            if part.kind == "param":
                self.optimizer.set_master(part.index, self.view(part))
            elif not self.is_state:
                self._state(part).copy_(self.view(part))

    def view(self, part: Part) -> Tensor:
        return self.block.view(part.start, part.span.count, part.dtype)

    def __str__(self) -> str:
        locked = ", which could not be page-locked (ulimit -l): copies are slow" if self.block.refused else ""
        return f"{self.block.size / 1e9:.1f} GB of optimizer's state in host memory{locked}"

    def files(self) -> list[list[dict[str, Any]]]:
        """What the writing process is to put into which file: of parts that several ranks hold, one writes."""
        written = [part for part in self.parts if part.span.written_here and part.span.count]
        return [[_described(part) for part in file] for file in _in_files(written)]

    def _copy_out(self, part: Part) -> None:
        if part.kind == "param":
            self.optimizer.copy_master(part.index, self.view(part))
        elif not self.is_state:
            self.view(part).copy_(self._state(part), non_blocking=True)

    def _state(self, part: Part) -> Tensor:
        return (self.optimizer.exp_avg if part.kind == "exp_avg" else self.optimizer.exp_avg_sq)[part.index].view(-1)


def _described(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "dtype": DTYPES[part.dtype],
        "shape": [part.span.count],
        "place": part.span.start,
        "start": part.start,
        "bytes": part.bytes,
    }


def _in_files(parts: list[Part]) -> Iterator[list[Part]]:
    file: list[Part] = []
    size = 0
    for part in parts:
        file.append(part)
        size += part.bytes
        if size >= _FILE_BYTES:
            yield file
            file, size = [], 0
    if file:
        yield file
