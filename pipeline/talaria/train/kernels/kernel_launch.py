"""Launch Triton's kernels at little cost for the host, which must stay ahead of the GPU.

Triton works out anew at each launch which compiled form of a kernel fits the arguments. That takes the host longer than a
small kernel takes the GPU: with 8-bit products and short micro-batches, the GPU stood idle for an eighth of a step
(benchmarks/LOG.md). A form depends on little of the arguments, so here it is looked up by that.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 16
"""What Triton asks of addresses (in bytes) and integers before it loads 16 bytes at a time."""


def hash_compiler() -> None:
    """Have Triton hash itself, which tells by which version kernels were compiled: half a second, once a process."""
    with contextlib.suppress(ImportError):  # no Triton, or one that does it otherwise
        from triton.runtime.cache import triton_key

        triton_key()


class Launcher:
    """A kernel that is launched as Triton's own is, `kernel[grid](*args, **constants)`, and remembers its compiled forms.

    args: tensors, numbers and None, in the order of the kernel's parameters; constants: its constexpr parameters and options.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self._forms: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
        """A compiled form and the constants that it is called with."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return partial(self._launch, grid)

    def _launch(self, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
        key, values, addresses = [torch.cuda.current_device(), *constants.values()], [], 0
        for arg in args:
            if isinstance(arg, Tensor):
                place = arg.data_ptr()
                addresses |= place
                key.append(arg.dtype)
                values.append(place)
            else:
                key.append(form_of(arg))
                values.append(arg)
        if addresses % _ALIGNED:
            self.kernel[grid](*args, **constants)
        elif found := self._forms.get(known := tuple(key)):
            compiled, rest = found
            compiled[(*grid, 1, 1)[:3]](*values, *rest)
        else:
            compiled = self.kernel[grid](*args, **constants)
            names = [param.name for param in self.kernel.params[len(args) :]]
            self._forms[known] = compiled, tuple(constants[name] for name in names)


def form_of(number: float | None) -> Any:
    """Return what a compiled form depends on: of an integer whether it is 1, a multiple of 16, or too large for 32 bits."""
    if type(number) is int:
        return (number == 1) | (number % _ALIGNED == 0) << 1 | (number.bit_length() > 31) << 2
    return type(number)
