"""How fast one product of the MLP runs for seconds on end, when the card's power decides: cuBLAS, Triton, SwiGLU inside.

    python benchmarks/train_products.py

A micro-batch of 13,056 tokens by Qwen3-4B's gate and up weights. "Inside" computes the activation in the product's own kernel,
from both halves of a tile, instead of reading the product again in a kernel of its own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from talaria.train.kernels.elementwise import swiglu
from train_measure import Sensors

TOKENS, WIDTH, HALF = 13_056, 2560, 9728
FLOP = 2 * TOKENS * WIDTH * 2 * HALF


@triton.jit
def _place(tile, rows, columns):
    """Tiles in groups of 8 rows, so that neighbours share operands in the cache."""
    group = tile // (8 * columns)
    size = min(rows - 8 * group, 8)
    return 8 * group + (tile % (8 * columns)) % size, (tile % (8 * columns)) // size


@triton.jit
def _product(a, b, c, M, N, K, PROGRAMS: tl.constexpr):
    rows, columns = tl.cdiv(M, 128), tl.cdiv(N, 256)
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS, flatten=True):
        row, column = _place(tile, rows, columns)
        total = tl.zeros([128, 256], tl.float32)
        for k in range(0, K, 64):
            total = tl.dot(a.load([row * 128, k]), b.load([column * 256, k]).T, total)
        c.store([row * 128, column * 256], total.to(tl.bfloat16))


@triton.jit
def _gated_product(a, b, c, act, M, F, K, PROGRAMS: tl.constexpr):
    rows, columns = tl.cdiv(M, 128), tl.cdiv(F, 128)
    for tile in tl.range(tl.program_id(0), rows * columns, PROGRAMS):
        row, column = _place(tile, rows, columns)
        gate = tl.zeros([128, 128], tl.float32)
        up = tl.zeros([128, 128], tl.float32)
        for k in range(0, K, 64):
            x = a.load([row * 128, k])
            gate = tl.dot(x, b.load([column * 128, k]).T, gate)
            up = tl.dot(x, b.load([F + column * 128, k]).T, up)
        gate, up = gate.to(tl.bfloat16), up.to(tl.bfloat16)
        c.store([row * 128, column * 128], gate)
        c.store([row * 128, F + column * 128], up)
        g = gate.to(tl.float32)
        act.store([row * 128, column * 128], (g * tl.sigmoid(g) * up.to(tl.float32)).to(tl.bfloat16))


def sustained(name: str, work: Callable[[], object], seconds: float = 2.5) -> None:
    """Print the mean over `seconds` of running `work` again and again, after one second of the same."""
    repeat(work, 1.0)
    with Sensors() as sensors:
        each = repeat(work, seconds)
    card = "".join(f"  {value:.0f} {unit}" for unit, value in sensors.result().items())
    print(f"{name:24} {1e3 * each:6.3f} ms  {FLOP / each / 1e12:.0f} TFLOP/s{card}", flush=True)


def repeat(work: Callable[[], object], seconds: float) -> float:
    """Mean seconds a call."""
    times, start = 0, time.monotonic()
    while time.monotonic() - start < seconds:
        for _ in range(20):
            work()
        torch.cuda.synchronize()
        times += 20
    return (time.monotonic() - start) / times


def main() -> None:
    device = torch.device("cuda")
    programs = torch.cuda.get_device_properties(device).multi_processor_count
    x = torch.randn(TOKENS, WIDTH, device=device, dtype=torch.bfloat16)
    w = torch.randn(2 * HALF, WIDTH, device=device, dtype=torch.bfloat16) * 0.02
    c = torch.empty(TOKENS, 2 * HALF, device=device, dtype=torch.bfloat16)
    act = torch.empty(TOKENS, HALF, device=device, dtype=torch.bfloat16)

    def tiles(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(tensor, [rows, columns])

    def product() -> None:
        _product[(programs,)](
            tiles(x, 128, 64), tiles(w, 256, 64), tiles(c, 128, 256), TOKENS, 2 * HALF, WIDTH, programs, num_stages=3, num_warps=8
        )

    def gated() -> None:
        arrays = tiles(x, 128, 64), tiles(w, 128, 64), tiles(c, 128, 128), tiles(act, 128, 128)
        _gated_product[(programs,)](*arrays, TOKENS, HALF, WIDTH, programs, num_stages=3, num_warps=8)

    want = x @ w.t()
    for work in (product, gated):
        work()
        torch.testing.assert_close(c, want)
        c.zero_()
    torch.testing.assert_close(act, swiglu(want))
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, triton {triton.__version__}")
    sustained("cuBLAS", lambda: torch.mm(x, w.t(), out=c))
    sustained("Triton", product)
    sustained("cuBLAS, then SwiGLU", lambda: swiglu(torch.mm(x, w.t(), out=c)))
    sustained("Triton, SwiGLU inside", gated)


if __name__ == "__main__":
    main()
