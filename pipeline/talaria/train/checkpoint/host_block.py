"""One stretch of host memory that a rank's state is copied to, shared with the process that writes it to the disk.

It lies in a file of a folder in memory (`folder`, on /dev/shm) where there is one with enough room: then it survives the rank,
and a restart takes up from it. Otherwise it is an anonymous file, which goes with the last process that has it open.

A GPU copies to it at full speed because it is page-locked, in one call: PyTorch's own pinned allocator rounds every tensor up to
a power of two, which took 271 GB for 48 GB of state.
"""

from __future__ import annotations

import mmap
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

_PAGE = 4096
_TOUCHING = 8
"""Threads that touch fresh pages: page-locking does it in one, which takes a minute for 100 GB."""
_SPARE = 1 << 28
"""Bytes of a folder in memory that are left to others."""


class HostBlock:
    """`size` bytes, at least one. `pin`: page-lock it, in a thread of its own, which takes seconds for tens of GB."""

    def __init__(self, size: int, *, folder: Path | None, name: str, pin: bool) -> None:
        self.size = max(size, 1)
        self.path = folder / name if folder and _fits(folder / name, self.size) else None
        self.kept = self.path is not None and self.path.exists() and self.path.stat().st_size == self.size
        """Whether it was there before, and still holds what an earlier process left in it."""
        if self.path:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        else:
            self.fd = os.memfd_create(name, os.MFD_CLOEXEC)
        if not self.kept:
            os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self.pinned = False
        self._pinning = threading.Thread(target=self._pin, name="pin", daemon=True) if pin else None
        if self._pinning:
            self._pinning.start()

    def view(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` elements from byte `start` on, as a flat tensor of `dtype`."""
        return self.bytes[start : start + count * dtype.itemsize].view(dtype)

    def ready(self) -> None:
        """Wait until it is page-locked."""
        if self._pinning:
            self._pinning.join()
            self._pinning = None

    def _pin(self) -> None:
        if not self.kept:
            with ThreadPoolExecutor(_TOUCHING) as pool:
                list(pool.map(Tensor.zero_, self.bytes[::_PAGE].chunk(_TOUCHING)))
        # Refused (a limit on locked memory): copies are slower then, and right all the same.
        refused = torch.cuda.cudart().cudaHostRegister(self.bytes.data_ptr(), self.size, 0)  # type: ignore[no-untyped-call]
        self.pinned = not int(refused)


def _fits(path: Path, size: int) -> bool:
    """Whether the folder has room for it; a file of an earlier process counts as free."""
    if not path.parent.is_dir():
        return False
    held = path.stat().st_size if path.exists() else 0
    return shutil.disk_usage(path.parent).free + held >= size + _SPARE
