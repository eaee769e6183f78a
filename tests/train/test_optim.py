"""The schedule to 1e-12, and AdamW against PyTorch's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from talaria.train.optim import bf16_masters
from talaria.train.optim.adamw import AdamW, AdamWSettings
from talaria.train.optim.bf16_masters import join_halves, split_halves, spread_masters
from talaria.train.optim.lr_schedule import LRSchedule

ADAMW = AdamWSettings(0.9, 0.95, 1e-8, 0.1)


def cosine(steps: int, warmup: float = 0.1) -> LRSchedule:
    return LRSchedule(1e-5, 1e-6, warmup, steps)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),
        (50, 5e-6),
        (100, 1e-5),
        (550, 5.5e-6),
        (325, 1e-6 + 9e-6 * (1 + math.cos(math.pi / 4)) / 2),
        (1000, 1e-6),
        (1001, 1e-6),
    ],
)
def test_megatrons_schedule(step: int, expected: float) -> None:
    assert cosine(1000)(step) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_schedule_without_warmup_and_with_a_fractional_one() -> None:
    assert cosine(10, warmup=0.0)(0) == 1e-5
    # 2.5 steps of warm-up: not rounded, as in Megatron, where it is a float.
    assert cosine(25)(2) == pytest.approx(1e-5 * 2 / 2.5, rel=1e-12)
    assert cosine(25)(3) == pytest.approx(1e-6 + 4.5e-6 * (1 + math.cos(math.pi * 0.5 / 22.5)), rel=1e-12)
    assert cosine(7, warmup=1.0)(7) == 1e-5


def parameters(dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in ((7, 5), (5,), (3, 2, 4))]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(param.shape, generator=generator) for param in parameters()]


def test_it_is_pytorchs_adamw_with_decay_on_matrices_only() -> None:
    mine, theirs = parameters(), parameters()
    ours = AdamW(mine, [None] * 3, ADAMW, torch.float32)
    groups = [{"params": [theirs[0], theirs[2]], "weight_decay": 0.1}, {"params": [theirs[1]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        lr, scale = 1e-2 / (1 + step), 0.5
        ours.step(gradients(step), lr, scale)
        for group in reference.param_groups:
            group["lr"] = lr
        for param, grad in zip(theirs, gradients(step), strict=True):
            param.grad = grad * scale
        reference.step()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_split_masters_are_fp32_masters() -> None:
    """bf16 parameters with their cut-off bits follow the same trajectory as fp32 parameters, bit for bit."""
    whole, halves = parameters(), parameters()
    low_bits = []
    for param in halves:
        high, low = split_halves(param.detach())
        param.data = high
        low_bits.append(low)
    one, other = AdamW(whole, [None] * 3, ADAMW, torch.float32), AdamW(halves, low_bits, ADAMW, torch.float32)
    for step in range(30):
        one.step(gradients(step), 1e-4, 1.0)
        other.step(gradients(step), 1e-4, 1.0)
    for index in range(3):
        assert torch.equal(other.master(index), one.master(index))
        assert halves[index].dtype == torch.bfloat16
        torch.testing.assert_close(halves[index].float(), whole[index].data, rtol=2**-8, atol=0)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1))
def test_halves_join_to_what_was_split(bits: list[int]) -> None:
    master = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    high, low = split_halves(master)
    assert torch.equal(join_halves(high, low).view(torch.int32), master.view(torch.int32))
    # Rounded to nearest: no other bf16 is nearer, but for ties.
    plain = master.bfloat16()
    finite = master.isfinite() & plain.isfinite()
    assert bool(((high.float() - master).abs() <= (plain.float() - master).abs())[finite].all())


def test_small_updates_are_not_lost() -> None:
    """A step of 1e-5 on a weight of 1 is far below bf16's resolution; a hundred of them are not, if masters are fp32."""
    param = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    optimizer = AdamW([param], [torch.zeros(4, 4, dtype=torch.int16)], replace(ADAMW, weight_decay=0.0), torch.float32)
    for _ in range(1000):
        optimizer.step([torch.ones(4, 4)], 1e-5, 1.0)
    assert float(optimizer.master(0)[0]) == pytest.approx(0.99, rel=1e-4)
    assert float(param.detach()[0, 0]) == pytest.approx(0.99, rel=2**-8)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("linear", {0: 0.0, 50: 5e-6, 100: 1e-5, 550: 5.5e-6, 1000: 1e-6, 1001: 1e-6}),
        ("constant", {0: 0.0, 50: 5e-6, 100: 1e-5, 550: 1e-5, 1000: 1e-5, 1001: 1e-5}),
        ("wsd", {0: 0.0, 50: 5e-6, 100: 1e-5, 800: 1e-5, 900: 5.5e-6, 1000: 1e-6, 1001: 1e-6}),
    ],
)
def test_other_schedules(kind: Any, rates: dict[int, float]) -> None:
    schedule = replace(cosine(1000), kind=kind, decay_fraction=0.2)
    assert {step: schedule(step) for step in rates} == pytest.approx(rates, rel=1e-12, abs=1e-18)


def test_a_decay_longer_than_what_warmup_leaves_begins_after_it() -> None:
    schedule = LRSchedule(1.0, 0.0, 0.5, 10, "wsd", 1.0)
    assert [schedule(step) for step in (4, 5, 6, 10)] == pytest.approx([0.8, 1.0, 0.8, 0.0])


def test_spread_masters_round_to_what_they_were_and_pass_on_the_mean_of_small_updates() -> None:
    generator = torch.Generator().manual_seed(0)
    stored = torch.cat(
        [torch.randn(400_000, generator=generator), torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0**-133, 3e38])]
    ).bfloat16()

    def spread(name: str, values: torch.Tensor) -> torch.Tensor:
        param = torch.nn.Parameter(values.float())
        spread_masters([(name, param)])
        return param.detach()

    master = spread("a", stored)
    assert torch.equal(master.bfloat16().view(torch.int16), stored.view(torch.int16))
    assert torch.equal(split_halves(master)[0].view(torch.int16), stored.view(torch.int16))
    assert torch.equal(master, spread("a", stored.view(2, -1)).flatten())
    assert not torch.equal(master, spread("b", stored))
    assert (master == stored)[400_000:400_002].all()  # zeros
    for update in (1e-4, 1e-5):
        seen = {
            name: float((start[:-6] + update).bfloat16().float().sub(stored[:-6].float()).mean())
            for name, start in (("spread", master), ("as stored", stored.float()))
        }
        assert seen["spread"] == pytest.approx(update, rel=0.3)
        assert seen["as stored"] < 0.3 * update


def test_spreading_does_not_depend_on_how_much_is_done_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for at_once in (1 << 24, 7):
        monkeypatch.setattr(bf16_masters, "_AT_ONCE", at_once)
        param = torch.nn.Parameter(torch.ones(5, 4))
        spread_masters([("x", param)])
        made.append(param.detach())
    assert torch.equal(*made)
