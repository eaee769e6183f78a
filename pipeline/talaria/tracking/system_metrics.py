"""Sample the machine's load every few seconds into system.jsonl, with the sums of GPU-hours and energy.

A line: step (of the sampling, from 0), time, `system/...` under the names that MLflow's own monitor uses, and since the
training folder's first start, over all restarts: cost/seconds, cost/gpu_hours, and cost/energy_kwh where NVML tells.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from talaria.runs.folder import SYSTEM
from talaria.runs.jsonl import append_row, end_line, last_row

_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Reading:
    """A sample of one GPU; None for values that the driver does not report."""

    utilization: float | None
    """Percentage of time in which a kernel ran."""
    memory_used: float
    memory_total: float
    watts: float | None
    joules: float | None
    """Energy counter since the driver was loaded, in joules."""


class Gpus(Protocol):
    def read(self) -> list[Reading]: ...


class Nvml:
    """Read the GPUs that this process may use through NVIDIA's management library."""

    def __init__(self, limit: int = 0) -> None:
        """`limit`: only the first so many, one a rank; 0: all. Raises ImportError or NVMLError without a driver."""
        import pynvml

        self.nvml = pynvml
        pynvml.nvmlInit()
        visible = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), pynvml.nvmlDeviceGetCount())
        self.handles = [self._handle(device) for device in visible][: limit or None]

    def _handle(self, device: int | str) -> Any:
        by_index = isinstance(device, int)
        return self.nvml.nvmlDeviceGetHandleByIndex(device) if by_index else self.nvml.nvmlDeviceGetHandleByUUID(device)

    def read(self) -> list[Reading]:
        return [self._reading(handle) for handle in self.handles]

    def _reading(self, handle: Any) -> Reading:
        nvml = self.nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        utilization = watts = joules = None
        # each of these is missing on some device: a MIG slice, a card before Volta
        with contextlib.suppress(nvml.NVMLError):
            utilization = float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        with contextlib.suppress(nvml.NVMLError):
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        with contextlib.suppress(nvml.NVMLError):
            joules = nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000
        return Reading(utilization, float(memory.used), float(memory.total), watts, joules)


def visible_devices(setting: str | None, count: int) -> list[int | str]:
    """Parse CUDA_VISIBLE_DEVICES: indices or UUIDs, up to the first invalid one."""
    if setting is None:
        return list(range(count))
    devices: list[int | str] = []
    for name in (part.strip() for part in setting.split(",")):
        if name.lstrip("-").isdigit():
            if not 0 <= int(name) < count:
                break
            devices.append(int(name))
        elif name:
            devices.append(name)
    return devices


def find_gpus(limit: int = 0) -> Gpus | None:
    """Return the GPUs to measure, or None: no driver, no nvidia-ml-py, no GPU for this process, or training on the CPU."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return None
    try:
        gpus = Nvml(limit)
    except ImportError:
        return None
    except Exception as error:  # NVMLError, a class that exists only with the library
        if type(error).__module__ != "pynvml":
            raise
        return None
    return gpus if gpus.handles else None


class Meter:
    """A thread that samples into `folder/system.jsonl` from `start` to `stop`."""

    def __init__(self, folder: Path, gpus: Gpus | None, *, interval: float = 10.0, machines: int = 1) -> None:
        self.path = folder / SYSTEM
        self.gpus = gpus
        self.interval = interval
        self.machines = machines
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="talaria-meter", daemon=True)
        last = last_row(self.path)
        self._step = int(last.get("step", -1)) + 1
        self._before = {name: value for name, value in last.items() if name.startswith("cost/")}
        self._joules = 0.0
        self._previous: list[Reading] = []
        self._started = self._sampled = time.monotonic()

    def start(self) -> None:
        import psutil

        psutil.cpu_percent(None)  # the first call only sets the mark
        end_line(self.path)
        self._started = self._sampled = time.monotonic()
        self._previous = self.gpus.read() if self.gpus else []
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and end the thread."""
        self._stop.set()
        self._thread.join()

    def _loop(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(self.interval)
            line = {"step": self._step, "time": time.time(), **self.sample()}
            append_row(self.path, line)
            self._step += 1

    def sample(self) -> dict[str, float]:
        now = time.monotonic()
        readings = self.gpus.read() if self.gpus else []
        self._joules += sum(_joules(*pair, now - self._sampled) for pair in zip(self._previous, readings, strict=True))
        self._previous, self._sampled = readings, now
        seconds = now - self._started
        cost = {"cost/seconds": seconds, "cost/gpu_hours": len(readings) * self.machines * seconds / 3600}
        if self._joules:
            cost["cost/energy_kwh"] = self._joules / _JOULES_PER_KWH
        total = {name: self._before.get(name, 0.0) + cost.get(name, 0.0) for name in cost | self._before}
        return {name: round(value, 6) for name, value in {**_machine(self.path.parent), **_gpu_load(readings), **total}.items()}


def _joules(before: Reading, after: Reading, seconds: float) -> float:
    """Return the energy between two samples: the counter's difference, or power times time without a counter."""
    if before.joules is not None and after.joules is not None and after.joules >= before.joules:
        return after.joules - before.joules
    if before.watts is not None and after.watts is not None:
        return (before.watts + after.watts) / 2 * seconds
    return 0.0


def _machine(folder: Path) -> dict[str, float]:
    import psutil

    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(folder))
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(None),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/disk_usage_percentage": disk.percent,
        "system/disk_available_megabytes": disk.free / 1e6,
    }


def _gpu_load(readings: list[Reading]) -> dict[str, float]:
    return dict(pair for index, reading in enumerate(readings) for pair in _one_gpu(f"system/gpu_{index}_", reading))


def _one_gpu(prefix: str, reading: Reading) -> Iterator[tuple[str, float]]:
    yield f"{prefix}memory_usage_megabytes", reading.memory_used / 1e6
    yield f"{prefix}memory_usage_percentage", 100 * reading.memory_used / reading.memory_total
    if reading.utilization is not None:
        yield f"{prefix}utilization_percentage", reading.utilization
    if reading.watts is not None:
        yield f"{prefix}power_usage_watts", reading.watts


def cost(folder: Path) -> dict[str, float]:
    """Return seconds, gpu_hours and energy_kwh of a training folder, as far as they were measured."""
    return {name.removeprefix("cost/"): value for name, value in last_row(folder / SYSTEM).items() if name.startswith("cost/")}
