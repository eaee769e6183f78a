"""What training cost: GPU-hours and energy, summed over restarts, from counters that are faked here."""

from __future__ import annotations

import json

import pytest
from talaria.runs.folder import SYSTEM
from talaria.tracking.system_metrics import Meter, Reading, cost, find_gpus, visible_devices


class FakeGpus:
    def __init__(self, *readings: list[Reading]) -> None:
        self.readings = list(readings)

    def read(self) -> list[Reading]:
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]


def reading(joules: float | None, watts: float | None = 300.0) -> Reading:
    return Reading(utilization=90.0, memory_used=60e9, memory_total=80e9, watts=watts, joules=joules)


def lines(folder):
    return [json.loads(line) for line in (folder / SYSTEM).read_text().splitlines()]


def test_energy_is_the_difference_of_the_drivers_counters(tmp_path):
    meter = Meter(tmp_path, FakeGpus([reading(1e6), reading(2e6)], [reading(2.8e6), reading(3.8e6)]))
    meter.start()
    meter.stop()
    assert cost(tmp_path)["energy_kwh"] == pytest.approx(1.0)  # 3.6 MJ
    assert lines(tmp_path)[-1]["system/gpu_1_memory_usage_percentage"] == 75.0
    assert lines(tmp_path)[-1]["system/gpu_0_power_usage_watts"] == 300.0


def test_gpu_hours_count_every_gpu_of_every_machine(tmp_path):
    meter = Meter(tmp_path, FakeGpus([reading(0.0)] * 8), machines=2)
    meter.start()
    meter.stop()
    total = cost(tmp_path)
    assert total["gpu_hours"] == pytest.approx(16 * total["seconds"] / 3600, abs=1e-5)


def test_a_restart_adds_to_what_was_spent(tmp_path):
    (tmp_path / SYSTEM).write_text(
        json.dumps({"step": 4, "time": 1.0, "cost/seconds": 7200.0, "cost/gpu_hours": 2.0, "cost/energy_kwh": 1.5}) + '\n{"torn'
    )
    meter = Meter(tmp_path, FakeGpus([reading(0.0)], [reading(3.6e6)]))
    meter.start()
    meter.stop()
    last = json.loads((tmp_path / SYSTEM).read_text().splitlines()[-1])
    assert last["step"] == 5
    assert last["cost/energy_kwh"] == pytest.approx(2.5)
    assert last["cost/seconds"] >= 7200.0


def test_without_a_counter_power_is_added_up_over_time(tmp_path):
    meter = Meter(tmp_path, FakeGpus([reading(None, 3.6e9)]), interval=0.02)  # 1 kWh a millisecond
    meter.start()
    meter.stop()
    total = cost(tmp_path)
    assert total["energy_kwh"] == pytest.approx(1000 * total["seconds"], rel=0.2)


def test_without_gpus_there_is_no_energy_to_tell(tmp_path):
    meter = Meter(tmp_path, None)
    meter.start()
    meter.stop()
    assert cost(tmp_path)["gpu_hours"] == 0.0
    assert "energy_kwh" not in cost(tmp_path)
    assert cost(tmp_path / "nowhere") == {}


@pytest.mark.parametrize(
    ("setting", "devices"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("2,0", [2, 0]),
        ("1,-1,2", [1]),
        ("1,9,2", [1]),
        ("GPU-abc, GPU-def", ["GPU-abc", "GPU-def"]),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(setting, devices):
    assert visible_devices(setting, 4) == devices


def test_a_machine_without_a_driver_has_no_gpus_to_measure():
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        assert find_gpus() is None
    else:
        assert find_gpus() is not None
