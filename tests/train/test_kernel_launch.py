"""A launcher asks Triton once for each compiled form, and takes another form whenever Triton would."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from talaria.train.kernels.kernel_launch import Launcher


class Kernel:
    """Stands in for a kernel of Triton's with the parameters x, y, n, eps, WIDTH and BLOCK."""

    params = tuple(SimpleNamespace(name=name) for name in ("x", "y", "n", "eps", "WIDTH", "BLOCK"))

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*args: Any, **constants: Any) -> Compiled:
            self.asked.append(args)
            return Compiled(self, len(self.asked))

        return run


class Compiled:
    def __init__(self, kernel: Kernel, form: int) -> None:
        self.kernel, self.form = kernel, form

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args: self.kernel.launched.append((self.form, grid, *args))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return Kernel()


def test_a_form_that_is_known_gets_addresses_and_constants_in_the_kernels_order(kernel: Kernel) -> None:
    launcher, x, y = Launcher(kernel), torch.zeros(32), torch.zeros(64)
    launcher[(2,)](x, None, 7, 1e-6, BLOCK=64, WIDTH=48, num_warps=4)
    launcher[(3, 2)](y, None, 9, 1e-5, BLOCK=64, WIDTH=48, num_warps=4)
    assert len(kernel.asked) == 1
    assert kernel.launched == [(1, (3, 2, 1), y.data_ptr(), None, 9, 1e-5, 48, 64)]


CHANGES: dict[str, dict[str, Any]] = {
    "another dtype": {"x": torch.zeros(32, dtype=torch.bfloat16)},
    "a tensor where there was none": {"y": torch.zeros(32)},
    "a multiple of 16": {"n": 32},
    "one": {"n": 1},
    "beyond 32 bits": {"n": 1 << 40 | 1},
    "another constant": {"WIDTH": 64},
    "another number of warps": {"num_warps": 8},
    "an integer for a float": {"eps": 3},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_form_is_asked_for(kernel: Kernel, change: dict[str, Any]) -> None:
    launcher = Launcher(kernel)
    usual = {"x": torch.zeros(32), "y": None, "n": 7, "eps": 1e-6, "WIDTH": 48, "BLOCK": 64, "num_warps": 4}
    for _ in range(2):
        for given in (usual, usual | change):
            x, y, n, eps, *_ = given.values()
            launcher[(1,)](x, y, n, eps, WIDTH=given["WIDTH"], BLOCK=given["BLOCK"], num_warps=given["num_warps"])
    assert len(kernel.asked) == 2
    assert [form for form, *_ in kernel.launched] == [1, 2]


def test_what_is_not_aligned_is_left_to_triton(kernel: Kernel) -> None:
    launcher, x = Launcher(kernel), torch.zeros(33)
    for part in (x[:32], x[1:], x[:32], x[1:]):
        launcher[(1,)](part, None, 7, 1e-6, WIDTH=48, BLOCK=64)
    assert [args[0].data_ptr() % 16 for args in kernel.asked] == [0, 4, 4]
