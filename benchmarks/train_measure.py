"""What the training benchmark reads off the device: clock and power, memory, and where the time of a step goes."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import torch

Result = dict[str, Any]


class Sensors:
    """What the device says of itself while a run goes on, five times a second: a card at its power limit slows its clock."""

    def __init__(self) -> None:
        self.readings: list[tuple[int, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Sensors:
        if torch.cuda.is_available() and find_spec("pynvml"):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _read(self) -> None:
        while not self._stop.wait(0.2):
            self.readings.append((torch.cuda.clock_rate(), torch.cuda.power_draw() / 1e3))

    def result(self) -> Result:
        """Mean over the readings taken under load, at more than half of the greatest power."""
        loaded = [reading for reading in self.readings if reading[1] > 0.5 * max(power for _, power in self.readings)]
        if not loaded:
            return {}
        return {"clock_mhz": statistics.mean(c for c, _ in loaded), "watts": statistics.mean(w for _, w in loaded)}


def memory() -> Result:
    if not torch.cuda.is_available():
        return {"peak_memory": 0, "process_memory": 0}
    from talaria.train.distributed.transport import shared_bytes

    free, total = torch.cuda.mem_get_info()
    return {"peak_memory": torch.cuda.max_memory_allocated() + shared_bytes(), "process_memory": total - free}


CLASSES = {
    # In this order: the first whose word a kernel's name holds.
    "communication": ("nccl", "barrier_kernel", "memcpy ptop"),
    "attention": ("flash", "fmha", "sdpa", "attention", "varlen", "cudnn::fusion"),
    "products": ("gemm", "nvjet", "cutlass", "cublas", "splitk", "xmma"),
    "norms": ("_norm_kernel", "_norm_backward", "_add_rows", "rms_norm"),
    "rotary": ("_rope",),
    "swiglu": ("_swiglu",),
    "loss": ("_softmax_nll",),
    "optimiser": ("_adamw", "lpnorm", "multi_tensor"),
    "casts to fp8": ("_quantize", "_round_kernel", "_contributions"),
    "transposes of fp8": ("_transpose_kernel",),
    "sums of gradients": ("functor_add", "functoronself_add", "cudafunctor_add"),
    "embedding": ("index", "sort", "radix", "embedding"),
    "fill and copy": ("memset", "memcpy", "fill", "copy"),
}


def profiled(run: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Milliseconds on the device by class of kernel; how long it stood idle, and before which kernels; the slowest kernels."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        outcome = run()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    events = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    by_class, by_name, idle = Counter[str](), Counter[str](), Counter[str]()
    compute = [event[:2] for event in events if kind_of(event[2]) != "communication"]
    exposed = union(event[:2] for event in events) - union(compute)
    reached, last = events[0][0], "start"
    for begin, end, name in events:
        kind = kind_of(name)
        by_class[kind] += end - begin
        by_name[f"{kind}: {name[:60]}"] += end - begin
        if begin > reached:
            idle[f"idle: {last[:40]} -> {name[:40]}"] += begin - reached
        reached, last = max(reached, end), name
    total = {"(busy)": sum(by_class.values()), "(idle)": sum(idle.values()), "(wall)": wall * 1e6}
    total |= {"(communication with no compute beside it)": exposed}
    rows = [*by_class.most_common(), *total.items(), *by_name.most_common(25), *idle.most_common(12)]
    return {name: microseconds / 1e3 for name, microseconds in rows}, outcome


def kind_of(name: str) -> str:
    return next((kind for kind, words in CLASSES.items() if any(word in name.lower() for word in words)), "other")


def union(stretches: Iterable[tuple[float, float]]) -> float:
    """How long at least one of these stretches, sorted by their begin, lasts."""
    total, reached = 0.0, float("-inf")
    for begin, end in stretches:
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
