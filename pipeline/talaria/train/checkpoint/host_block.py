"""One stretch of host memory that a rank's state is copied to, shared with the process that writes it to the disk.

It lies in a file of a folder in memory (`folder`, on /dev/shm) where there is one with enough room: then it survives the rank,
and a restart takes up from it. Otherwise it is an anonymous file, which goes with the last process that has it open.

A GPU copies to it at full speed because it is page-locked. PyTorch's own pinned allocator rounds every tensor up to a power of
two, which took 271 GB for 48 GB of state. The driver stops the whole process while it locks memory: for 14 s, where 24 GB are
still to be made; for 1 s, once they are there. So they are made first, which stops nobody, and locked piece by piece.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from talaria.train.distributed.process_group import use

_SPARE = 1 << 28
"""Bytes of a folder in memory that are left to others."""
_MAKERS = 4
"""Threads that make memory, beside a training that goes on."""
_AT_ONCE = 1 << 28
"""Bytes that are made in one call, and at least as many that are locked in one, except at the end."""
_PAUSE = 0.02
"""Seconds between two calls that lock."""
_CPU = torch.device("cpu")
PAGE = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23
"""Linux 5.14; Python's mmap does not know it, and its madvise would keep other threads from running."""


def whole_pages(count: int) -> int:
    """Return the bytes of the pages that hold `count` bytes."""
    return -(-count // PAGE) * PAGE


class _Mapping(mmap.mmap):
    """A mapping that page-locks its memory in pieces, and unlocks them before it is unmapped.

    Else the driver would go on taking the addresses for locked memory, whatever is mapped there next.
    """

    whole = False
    """Whether all of it was locked as one piece."""

    def lock(self, addresses: Iterable[tuple[int, int]]) -> Iterator[bool]:
        """Lock each [start, stop), and say after each whether that was done."""
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        self._unlock, self._locked = runtime.cudaHostUnregister, getattr(self, "_locked", [])
        for start, stop in addresses:
            done = int(runtime.cudaHostRegister(start, stop - start, 0)) == 0
            if done:
                self._locked.append(start)
            yield done

    def __del__(self) -> None:
        for start in getattr(self, "_locked", ()):
            self._unlock(start)


_ahead: dict[Path, _Mapping] = {}
"""Locked for blocks that are still to be made, by their files."""


def lock_ahead(path: Path, device: torch.device) -> None:
    """Page-lock what an earlier process left in a file in memory, for the HostBlock that will be made of it, if it is a GPU's.

    It is one piece, as it is not known yet how it is laid out, and nothing runs here that the driver could stop meanwhile.
    """
    if device.type != "cuda":
        return
    with path.open("r+b") as file:
        mapping = _Mapping(file.fileno(), 0)
    memory = torch.frombuffer(mapping, dtype=torch.uint8)
    make_pages(memory)
    mapping.whole = all(mapping.lock([(memory.data_ptr(), memory.data_ptr() + len(memory))]))
    if mapping.whole:
        _ahead[path] = mapping


class HostBlock:
    """`size` bytes, at least one, which `lock` page-locks for `device` where that is a GPU.

    A copy must not cross from one locked piece to another: `starts`, ascending multiples of PAGE, are where pieces may begin.
    """

    def __init__(
        self, size: int, *, folder: Path | None, name: str, device: torch.device = _CPU, starts: Sequence[int] = ()
    ) -> None:
        self.size = max(size, 1)
        self.path = folder / name if folder and fits(folder / name, self.size) else None
        self.kept = self.path is not None and self.path.exists() and self.path.stat().st_size == self.size
        """Whether it was there before, and still holds what an earlier process left in it."""
        ahead = _ahead.pop(self.path, None) if self.path else None
        if self.path:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        else:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        if not self.kept:
            os.ftruncate(self.fd, self.size)
        self._map = ahead if ahead and self.kept else _Mapping(self.fd, self.size)
        weakref.finalize(self, os.close, self.fd)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.pinned = self.refused = False
        """Whether it is page-locked; whether some of it could not be (a limit on locked memory), which makes copies slow."""
        self._starts, self._device = starts, device
        self._pinning: threading.Thread | None = None
        self._wanted = threading.Event()

    def view(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` elements from byte `start` on, as a flat tensor of `dtype`."""
        return self.bytes[start : start + count * dtype.itemsize].view(dtype)

    def lock(self, after: HostBlock | None = None) -> None:
        """Begin to page-lock it for a GPU, in a thread, for seconds where it is tens of GB.

        `after`: what is locked before it; then it also waits until it is wanted, and stops nobody who has not begun to train.
        """
        if self._device.type == "cuda":
            self._pinning = threading.Thread(target=self._pin, args=[after and after._pinning], name="pin", daemon=True)
            self._pinning.start()

    @property
    def made(self) -> bool:
        """Whether it is page-locked by now, where it is to be."""
        return self._pinning is None or not self._pinning.is_alive()

    def want(self) -> None:
        """Let the locking of what is locked after another block begin."""
        self._wanted.set()

    def ready(self) -> None:
        """Wait until it is page-locked."""
        self.want()
        if self._pinning:
            self._pinning.join()
            self._pinning = None

    def _pin(self, after: threading.Thread | None) -> None:
        if after:
            after.join()
            self._wanted.wait()
        if self._map.whole:
            self.pinned = True
            return
        use(self._device)
        make_pages(self.bytes)  # those that an earlier process made are found: to lock 24 GB page by page took 3.4 s
        first, done = self.bytes.data_ptr(), True
        for locked in self._map.lock((first + start, first + stop) for start, stop in pieces(self._starts, self.size)):
            done &= locked
            if after or not self.kept:  # else there is no step yet that could go on meanwhile
                time.sleep(_PAUSE)
        self.pinned, self.refused = done, not done


def pieces(starts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Cut `size` bytes at some of `starts` into [start, stop) of at least _AT_ONCE bytes, but for the last."""
    first = 0
    for start in starts:
        if start - first >= _AT_ONCE:
            yield first, start
            first = start
    if first < size:
        yield first, size


def make_pages(memory: Tensor) -> None:
    """Let the kernel make or find the pages of mapped memory, uint8[n], now; where it knows no such call, they come with use."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with ThreadPoolExecutor(_MAKERS) as pool:
        for piece in memory.split(_AT_ONCE):  # type: ignore[no-untyped-call]
            pool.submit(madvise, piece.data_ptr(), piece.numel(), _MADV_POPULATE_WRITE)


def fits(path: Path, size: int, beside: int = 0) -> bool:
    """Whether the folder has room for a file of `size` bytes, unless it is there, and `beside` it for so many of others."""
    if not path.parent.is_dir():
        return False
    held = path.stat().st_size if path.exists() else 0
    return held == size or shutil.disk_usage(path.parent).free + held >= size + beside + _SPARE
