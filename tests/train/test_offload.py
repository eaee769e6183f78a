"""The optimizer's state in host memory: the same run to the bit, resident or not, whatever its chunks and its room are."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from talaria.common.errors import ConfigError
from talaria.config.load import parse
from talaria.train import optimizer as made
from talaria.train import placement
from talaria.train.checkpoint.host_block import HostBlock
from talaria.train.checkpoint.manager import CheckpointManager
from talaria.train.checkpoint.writer_process import WriterProcess
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.sharding import ReplicaLayout
from talaria.train.kernels import linear
from talaria.train.optim import offload
from talaria.train.optim.adamw import AdamW, AdamWSettings
from talaria.train.optim.bf16_masters import split_halves
from talaria.train.optim.offload import OffloadedAdamW
from talaria.train.optim.span import ParamSpan
from talaria.train.train_state import TrainJob

from tests.train import ranks

SETTINGS: dict[str, Any] = {"max_steps": 9, "save_every": 2, "max_tokens_per_device": 512}
SHAPES = ((70, 50), (50,), (3, 2, 400), (48, 100))
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def optimizers(precision: str, device: str, room: int, away: Sequence[int] | None) -> tuple[AdamW, OffloadedAdamW]:
    """One whose state is on the device and one whose is not, or in part, of equal parameters."""
    both: list[Any] = []
    for offloaded in (False, True):
        draw = torch.Generator().manual_seed(0)
        params = [torch.nn.Parameter(torch.randn(shape, generator=draw).to(device)) for shape in SHAPES]
        low: list[torch.Tensor | None] = [None] * len(params)
        for index, param in enumerate(params):
            if precision == "bf16":
                param.data = param.data.bfloat16()
            elif precision == "mixed":
                param.data, low[index] = split_halves(param.data)
        how = (params, low, AdamWSettings(0.9, 0.95, 1e-8, 0.1), torch.bfloat16 if precision == "bf16" else torch.float32)
        both.append(OffloadedAdamW(*how, device_room=lambda: room, away=away) if offloaded else AdamW(*how))
    resident, offloaded = both
    sizes = {index: offloaded.part(index).numel() for index in sorted(offloaded.away)}
    where: dict[str, Any] = {"pin_memory": device == "cuda"}
    masters = [torch.zeros(size, dtype=offloaded.master_dtype(index), **where) for index, size in sizes.items()]
    moments = ([torch.zeros(size, dtype=offloaded.state_dtype, **where) for size in sizes.values()] for _ in range(2))
    offloaded.adopt(masters, *moments)
    held = [index for index, bits in enumerate(low) if bits is not None and bits.untyped_storage().nbytes()]
    assert set(held).isdisjoint(offloaded.away)  # the device has the memory back, whoever knows the tensor
    return resident, offloaded


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("room", "parts"), [(0, None), (30_000, None), (10**9, None), (30_000, (0, 3)), (10**9, (1, 2))])
@pytest.mark.parametrize("precision", ["mixed", "bf16", "fp32"])
def test_updates_are_the_resident_ones_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, precision: str, room: int, parts: Sequence[int] | None, device: str
) -> None:
    monkeypatch.setattr(offload, "CHUNK", 960)
    resident, away = optimizers(precision, device, room, parts)
    draw = torch.Generator().manual_seed(1)
    for step in range(6):
        grads = [torch.randn(shape, generator=draw).to(device, resident.state_dtype) for shape in SHAPES]
        away.prefetch()
        for one in (resident, away):
            one.step(grads, 1e-2 / (1 + step), 0.5)
        away.release(3)
        if step == 3:  # as a checkpoint does, in the midst of a run
            away.release()
            for index in range(len(SHAPES)):
                target = torch.zeros(away.part(index).numel(), dtype=away.master_dtype(index))
                away.copy_master(index, target)
                if device == "cuda":
                    torch.cuda.synchronize()
                assert parts is None or torch.equal(target, resident.master(index).cpu())
    away.release()
    for index in range(len(SHAPES)):
        assert torch.equal(resident.part(index), away.part(index))
        assert torch.equal(resident.master(index), away.master(index))
        assert torch.equal(resident.exp_avg[index].cpu(), away.exp_avg[index].cpu())
        assert torch.equal(resident.exp_avg_sq[index].cpu(), away.exp_avg_sq[index].cpu())


def test_with_fp8_as_much_is_away_as_makes_micro_batches_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first parameters; none where a step is short, too much is missing, or the host has no room."""
    train = parse({"name": "x", "train": {"offload": "auto", "fp8": True}}, "test").train
    model: Any = SimpleNamespace(fp8=True, activations=SimpleNamespace(bytes_without_recomputation=lambda tokens: tokens * 1000))
    trained: Any = SimpleNamespace(spans=[ParamSpan(0, count, count) for count in (1000, 50_000, 100_000, 500_000)])
    enough = 1000 * math.ceil(linear.MANY * 50_000 / (50_000 - linear.MANY))  # 9 micro-batches of 50,000 / 9 and fewer have MANY

    def away(missing: float, tokens: float = 50_000, ranks_here: int = 1, **changes: Any) -> list[int]:
        made_of, group = train.model_copy(update=changes), SimpleNamespace(local_size=ranks_here)
        return made.state_away(made_of, model, trained, group, enough - missing, tokens)  # type: ignore[arg-type]

    assert away(0) == []
    assert away(10_001) == [0, 1] == away(510_000)
    assert away(510_001) == [0, 1, 2]
    assert away(1_510_001) == []  # more than can be hidden
    assert away(10_001, tokens=2 * linear.MANY - 1) == []
    assert away(10_001, offload="none") == [] == away(10_001, offload="optimizer") == away(10_001, precision="bf16")
    assert made.bytes_away(train, trained, [0, 1]) == 510_000
    monkeypatch.setattr(made, "device_memory", lambda _: 8_500_000)
    assert away(10_001) == []
    monkeypatch.setattr(made, "device_memory", lambda _: 20_000_000)
    assert away(10_001, ranks_here=2) == [0, 1]
    assert away(10_001, ranks_here=3) == []  # the ranks of a machine share its memory


@pytest.mark.parametrize("precision", ["mixed", "bf16"])
def test_a_run_moves_between_host_and_device_and_is_the_same_to_the_bit(
    job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(offload, "CHUNK", 9_600)  # forked ranks inherit it
    resident = job("resident", **SETTINGS, precision=precision)
    ranks.run(resident, 2)
    monkeypatch.setattr(
        placement, "state_away", lambda train, *_: [0, 4, 5] if (train.offload, precision) == ("auto", "mixed") else []
    )
    moved = job("moved", **SETTINGS, precision=precision, offload="optimizer")
    stops = (("optimizer", 3), ("auto", 5), ("none", 6), ("auto", 7), ("optimizer", None))
    for place, stop_at in stops:
        part = job("moved", **SETTINGS, precision=precision, offload=place)
        started = ranks.Ranks(part, 2, ranks.at_step(stop_at, 0, signal.SIGTERM) if stop_at else None)
        assert started.codes() == [0, 0], started.log()
    assert ranks.status(moved.output)["state"] == "done"
    assert ranks.steps(moved.output) == ranks.steps(resident.output)
    weights = "model/model.safetensors"
    assert (moved.output / weights).read_bytes() == (resident.output / weights).read_bytes()
    assert "optimizer's state in host memory" in ranks.Ranks.log(started)


def test_where_memory_cannot_be_page_locked_the_state_stays_and_the_run_says_so(
    job: Callable[..., TrainJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one rank of two: both must go on alike."""
    monkeypatch.setattr(placement, "state_away", lambda *_: [0, 4])

    def before(rank: int) -> None:
        HostBlock.lock = lambda block, after=None: setattr(block, "refused", rank == 1)  # type: ignore[method-assign, assignment]
        OffloadedAdamW.step = None  # type: ignore[assignment]  (nobody takes it)

    log = ranks.run(job(max_steps=2, precision="mixed", snapshot_seconds=0), 2, before).log()
    assert log.count("GB of the optimizer's state could not be page-locked (ulimit -l): all of it stays on the GPU") == 1
    assert "optimizer's state in host memory" not in log


def test_an_update_waits_until_the_state_is_written(job: Callable[..., TrainJob]) -> None:
    """Host memory holds it once. Writing is held up here until somebody waits for it."""

    def before(rank: int) -> None:
        waited_for = threading.Event()
        wait, write, update = CheckpointManager._wait, WriterProcess.write, OffloadedAdamW.step

        def waits(self: CheckpointManager, *args: Any) -> None:
            waited_for.set()
            wait(self, *args)

        def writes(self: WriterProcess, *args: Any) -> Any:
            waited_for.wait()
            done = write(self, *args)
            print("written")
            return done

        def updates(self: OffloadedAdamW, *args: Any) -> None:
            print("updated")
            update(self, *args)

        CheckpointManager._wait, WriterProcess.write = waits, writes  # type: ignore[method-assign]
        OffloadedAdamW.step = updates  # type: ignore[method-assign]

    run = ranks.run(job(max_steps=5, save_every=2, offload="optimizer", precision="mixed"), before=before)
    order = [line for line in run.log().splitlines() if line in ("written", "updated")]
    assert order == ["updated", "updated", "written", "updated", "updated", "written", "updated", "written"]


def test_what_does_not_combine_is_refused() -> None:
    for sharding in ("shard", "hybrid"):
        with pytest.raises(ConfigError, match=f"keeps whole weights on each GPU, which sharding: {sharding} does not"):
            parse({"name": "x", "train": {"offload": "optimizer", "sharding": sharding}}, "test")


def test_a_machine_or_a_gpu_with_too_little_memory_is_told_before_it_costs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    train = parse({"name": "x", "train": {"offload": "optimizer"}}, "test").train
    model, group = torch.nn.Linear(100_000, 100_000, device="meta"), ProcessGroup(0, 1, 0, 1, torch.device("cpu"))
    with pytest.raises(ConfigError, match="but this model's do not fit; leave it off"):
        made.require_offloadable(model, train, ReplicaLayout(1, 2), group)
    monkeypatch.setattr(made, "device_memory", lambda _: 10**11)
    with pytest.raises(ConfigError, match=r"takes 120 of this machine's 100 GB of memory; use a machine with more of it"):
        made.require_offloadable(model, train, ReplicaLayout(1, 1), group)
