"""How weights and sums of gradients pass between ranks: by NCCL's (gloo's) collectives, or by a GPU's copy engines.

NCCL's kernels take multiprocessors from the products that run beside them: with a layer's weights and sums always on their way,
products were an eighth slower (benchmarks/LOG.md). Ranks of one machine that can read each other's memory copy from it instead,
which takes none; only the sums are added up by kernels.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from talaria.train.distributed.process_group import ProcessGroup, all_gather_all, reduce_scatter_all

Pairs = Iterable[tuple[Tensor, Tensor]]

_LANDING = 1 << 28
"""Bytes for what arrives from others to be added up: half a layer of Qwen3-4B. What is larger comes in pieces."""

_ROW = 256
"""Elements."""

_shared_blocks: list[int] = []


def shared_bytes() -> int:
    """Return how much of its GPU's memory this process has beside what PyTorch's allocator counts."""
    return sum(_shared_blocks)


class Transport(Protocol):
    """All ranks call the same of these in the same order."""

    landing: int
    """Bytes that it takes for itself."""

    def shared(self, count: int, dtype: torch.dtype) -> Tensor:
        """Make `count` zeros for what passes between ranks. Collective."""

    def changed(self) -> None:
        """This rank's stretches of weights are new: what is gathered next waits until those of every rank are."""

    def gather(self, pairs: Pairs) -> Any:
        """Begin to gather each (whole, this rank's stretch of it) from all ranks; returns what to `wait` for.

        The stretch is shared memory: a place of its own, or its place in a shared whole.
        """

    def scatter(self, pairs: Pairs, *, add: bool) -> Any:
        """Begin to add up each (shared whole, this rank's stretch of the sum) over ranks; `add`: to what the stretch holds.

        The stretch may be its place in the whole. Returns what to `wait` for before the shared ones are changed.
        """


def choose_transport(group: ProcessGroup) -> Transport:
    """Collective."""
    of_one_machine = group.device.type == "cuda" and 1 < group.size == group.local_size
    make = _symmetric_blocks(group) if of_one_machine else None
    return PeerCopies(group, make) if make else Collectives(group)


class Collectives:
    landing = 0

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group

    def shared(self, count: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(count, dtype=dtype, device=self.group.device)

    def changed(self) -> None:
        """Nobody reads them but through a collective."""

    def gather(self, pairs: Pairs) -> Any:
        return all_gather_all(pairs)

    def scatter(self, pairs: Pairs, *, add: bool) -> Any:
        if not add:
            return reduce_scatter_all(pairs)
        in_place = [(whole, _stretch(whole, target, self.group.rank), target) for whole, target in pairs]
        work = reduce_scatter_all((whole, own) for whole, own, _ in in_place)
        return _AddedAfter(work, [target for *_, target in in_place], [own for _, own, _ in in_place])


@dataclass(frozen=True)
class _AddedAfter:
    work: Any
    targets: list[Tensor]
    sums: list[Tensor]

    def wait(self) -> None:
        self.work.wait()
        torch._foreach_add_(self.targets, self.sums)


@dataclass(frozen=True)
class PeerBlock:
    """A flat tensor of every rank, all alike, which each can read."""

    every: Sequence[Tensor]
    """By rank."""
    barrier: Callable[[], None]
    """Let what this rank's device does next wait until every rank's device has come so far."""


class PeerCopies:
    """`make` a block of so many elements of a dtype; collective."""

    landing = _LANDING

    def __init__(self, group: ProcessGroup, make: Callable[[int, torch.dtype], PeerBlock]) -> None:
        self.group, self._make = group, make
        # Before what the step has queued: the sums' kernels are small, and the next layer waits for what is copied.
        self._stream = torch.cuda.Stream(group.device, priority=-1) if group.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._blocks: list[PeerBlock] = []
        self._found: dict[tuple[int, int], list[Tensor]] = {}
        self._landing = torch.empty(self.landing, dtype=torch.uint8, device=group.device)
        self._changed = True

    def shared(self, count: int, dtype: torch.dtype) -> Tensor:
        block = self._make(count, dtype)
        self._blocks.append(block)
        return block.every[self.group.rank].zero_()

    def changed(self) -> None:
        # Nobody reads the former ones any more: the update came after a sum over ranks, to which what they led to belongs.
        self._changed = True

    def gather(self, pairs: Pairs) -> Any:
        with self._beside() as work:
            if self._changed:
                self._blocks[0].barrier()
                self._changed = False
            for whole, own in pairs:
                in_place = _stretch(whole, own, self.group.rank).data_ptr() == own.data_ptr()
                theirs = self._of_every_rank(whole if in_place else own)
                for rank in self._from_own_on()[int(in_place) :]:
                    source = _stretch(theirs[rank], own, rank) if in_place else theirs[rank]
                    _stretch(whole, own, rank).copy_(source)
        return work

    def scatter(self, pairs: Pairs, *, add: bool) -> Any:
        stretches = [(_stretch(whole, target, self.group.rank), target) for whole, target in pairs]
        with self._beside() as work:
            self._blocks[0].barrier()
            for piece in _pieces(stretches, self._fitting(stretches[0][0])):
                self._add_up(piece, add=add)
            self._blocks[0].barrier()  # others have read what they wanted of this rank's
        return work

    def _add_up(self, piece: Sequence[tuple[Tensor, Tensor]], *, add: bool) -> None:
        sums, targets = [own for own, _ in piece], [target for _, target in piece]
        sizes, (_, *peers) = [len(own) for own in sums], self._from_own_on()
        landing = self._landing.view(sums[0].dtype)[: len(peers) * sum(sizes)]
        addends = [list(place.split(sizes)) for place in landing.view(len(peers), -1)]
        for rank, places in zip(peers, addends, strict=True):
            for own, place in zip(sums, places, strict=True):
                place.copy_(self._of_every_rank(own)[rank])
        for places in addends[: None if add else -1]:
            torch._foreach_add_(sums, places)
        if add:
            torch._foreach_add_(targets, sums)
        else:
            for own, place, target in zip(sums, addends[-1], targets, strict=True):
                torch.add(own, place, out=target)

    def _fitting(self, like: Tensor) -> int:
        """How many elements of every other rank have room at a time; in whole rows of the memory's."""
        return max(_ROW, self.landing // like.itemsize // (self.group.size - 1) // _ROW * _ROW)

    def _from_own_on(self) -> list[int]:
        """All ranks, each rank's list beginning with itself, so that not all read from the same one at a time."""
        return [(self.group.rank + step) % self.group.size for step in range(self.group.size)]

    def _of_every_rank(self, own: Tensor) -> list[Tensor]:
        """What lies where `own` does in its block, of every rank."""
        key = own.data_ptr(), len(own)
        if key not in self._found:
            begins = [(block, own.data_ptr() - block.every[self.group.rank].data_ptr()) for block in self._blocks]
            block, begin = next((block, at) for block, at in begins if 0 <= at < block.every[self.group.rank].nbytes)
            start = begin // own.itemsize
            self._found[key] = [theirs[start : start + len(own)] for theirs in block.every]
        return self._found[key]

    @contextlib.contextmanager
    def _beside(self) -> Iterator[_Done]:
        """Do it beside what comes next, after all that has been asked for."""
        done = _Done()
        if self._stream is None:
            yield done
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.group.device))
        with torch.cuda.stream(self._stream):
            yield done
            done.event = self._stream.record_event()


class _Done:
    event: Any = None

    def wait(self) -> None:
        if self.event is not None:
            self.event.wait()


def _stretch(whole: Tensor, part: Tensor, rank: int) -> Tensor:
    """The rank's of equal stretches of a flat tensor, each as long as `part`."""
    return whole[rank * len(part) : (rank + 1) * len(part)]


def _pieces(pairs: Sequence[tuple[Tensor, Tensor]], most: int) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Yield the pairs in turn, cut where it must be, so that those yielded together have no more than `most` elements."""
    piece: list[tuple[Tensor, Tensor]] = []
    room = most
    for one, other in pairs:
        start = 0
        while start < len(one):
            part = slice(start, min(start + room, len(one)))
            piece.append((one[part], other[part]))
            start, room = part.stop, room - (part.stop - part.start)
            if not room:
                yield piece
                piece, room = [], most
    if piece:
        yield piece


def _symmetric_blocks(group: ProcessGroup) -> Callable[[int, torch.dtype], PeerBlock] | None:
    """Collective: None, on every rank, where these GPUs do not read each other's memory, or this PyTorch knows no way to."""
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # not needed, and a device of the whole host's
    os.environ.setdefault("TORCH_SYMMMEM_IMPLICIT_POOL", "0")  # memory of its own, beside the allocator's segments

    def make(count: int, dtype: torch.dtype) -> PeerBlock:
        from torch.distributed import _symmetric_memory as symmetric

        if count * dtype.itemsize > torch.cuda.mem_get_info(group.device)[0]:
            torch.cuda.empty_cache()  # nobody asks the allocator for what it keeps
        own = symmetric.empty(count, dtype=dtype, device=group.device)
        handle = symmetric.rendezvous(own, dist.group.WORLD)  # type: ignore[arg-type]
        every = [own if rank == group.rank else handle.get_buffer(rank, (count,), dtype) for rank in range(group.size)]
        _shared_blocks.append(own.nbytes)
        return PeerBlock(every, handle.barrier)

    peers = [rank for rank in range(group.size) if rank != group.local_rank]
    able = all(torch.cuda.can_device_access_peer(group.device, peer) for peer in peers)
    if not all(group.gather(able)):
        return None
    try:
        make(group.size, torch.float32)
        fault = None
    except Exception as error:  # whatever a driver or a container's limits refuse
        fault = f"{type(error).__name__}: {error}"
    if found := next(filter(None, group.gather(fault)), None):
        if group.is_main:
            warnings.warn(
                f"GPUs share no memory, and weights and gradients pass between them by NCCL, which is slower: {found}",
                stacklevel=1,
            )
        return None
    return make
