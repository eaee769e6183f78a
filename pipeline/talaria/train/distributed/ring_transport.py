"""How the stretches of sharded layers pass between ranks: by NCCL's (gloo's) collectives, or by a GPU's copy engines.

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


class RingTransport(Protocol):
    def shared(self, count: int, dtype: torch.dtype) -> Tensor:
        """Make `count` zeros for what passes between ranks. Collective."""

    def changed(self) -> None:
        """This rank's stretches of weights are new."""

    def gather(self, pairs: Pairs) -> Any:
        """Begin to gather each (whole, this rank's shared stretch of it) from all ranks; returns what to `wait` for."""

    def scatter(self, pairs: Pairs, *, add: bool) -> Any:
        """Begin to add up each (shared whole, this rank's stretch of the sum) over ranks; `add`: to what the stretch holds.

        Returns what to `wait` for, before when the shared ones must be left as they are.
        """


def ring_transport(group: ProcessGroup) -> RingTransport:
    """Collective."""
    make = _symmetric_blocks(group) if group.device.type == "cuda" and group.size == group.local_size else None
    return PeerCopies(group, make) if make else Collectives(group)


class Collectives:
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

    def __init__(self, group: ProcessGroup, make: Callable[[int, torch.dtype], PeerBlock]) -> None:
        self.group, self._make = group, make
        # Before what the step has queued: the sums' kernels are small, and the next layer waits for what is copied.
        self._stream = torch.cuda.Stream(group.device, priority=-1) if group.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._blocks: list[PeerBlock] = []
        self._found: dict[tuple[int, int], list[Tensor]] = {}
        self._landing: Tensor | None = None
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
                theirs = self._of_every_rank(own)
                for rank in self._from_own_on():
                    _stretch(whole, own, rank).copy_(theirs[rank])
        return work

    def scatter(self, pairs: Pairs, *, add: bool) -> Any:
        listed = [(_stretch(whole, target, self.group.rank), target) for whole, target in pairs]
        sums, targets = [own for own, _ in listed], [target for _, target in listed]
        sizes, (_, *peers) = [len(own) for own in sums], self._from_own_on()
        with self._beside() as work:
            self._blocks[0].barrier()
            landing = self._room(len(peers), sum(sizes), sums[0])
            addends = [list(place.split(sizes)) for place in landing]
            for rank, places in zip(peers, addends, strict=True):
                for own, place in zip(sums, places, strict=True):
                    place.copy_(self._of_every_rank(own)[rank])
            self._blocks[0].barrier()
            for places in addends[: None if add else -1]:
                torch._foreach_add_(sums, places)
            if add:
                torch._foreach_add_(targets, sums)
            else:
                for own, place, target in zip(sums, addends[-1], targets, strict=True):
                    torch.add(own, place, out=target)
        return work

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

    def _room(self, rows: int, width: int, like: Tensor) -> Tensor:
        if self._landing is None or self._landing.shape[1] < width:
            self._landing = like.new_empty(rows, width)
        return self._landing[:, :width]

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


def _symmetric_blocks(group: ProcessGroup) -> Callable[[int, torch.dtype], PeerBlock] | None:
    """Collective: None, on every rank, where these GPUs do not read each other's memory, or this PyTorch knows no way to."""
    os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")  # not needed, and a device of the whole host's
    os.environ.setdefault("TORCH_SYMMMEM_IMPLICIT_POOL", "0")  # memory of its own, beside the allocator's segments

    def make(count: int, dtype: torch.dtype) -> PeerBlock:
        from torch.distributed import _symmetric_memory as symmetric

        own = symmetric.empty(count, dtype=dtype, device=group.device)
        handle = symmetric.rendezvous(own, dist.group.WORLD)  # type: ignore[arg-type]
        every = [own if rank == group.rank else handle.get_buffer(rank, (count,), dtype) for rank in range(group.size)]
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
            warnings.warn(f"GPUs share no memory, and layers pass between them by NCCL, which is slower: {found}", stacklevel=1)
        return None
    return make
