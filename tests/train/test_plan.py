"""The plan: every conversation as often as it should be, nothing too long, nothing unbalanced."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from talaria.common.errors import ConfigError
from talaria.train.batching.balance import balanced_bins, differencing
from talaria.train.batching.plan import Plan

QUADRATIC = 3.67e-5
"""Qwen3-4B's."""


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    limit = draw(st.integers(8, 200))
    lengths = draw(st.lists(st.integers(1, limit), min_size=1, max_size=60))
    targets = [draw(st.integers(0, length - 1)) for length in lengths]
    return Plan(
        lengths,
        targets,
        global_batch=draw(st.integers(1, 40)),
        max_tokens=limit,
        packed_tokens=draw(st.one_of(st.none(), st.integers(1, limit))),
        ranks=draw(st.integers(1, 5)),
        epochs=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 3)),
        quadratic=draw(st.sampled_from([0.0, QUADRATIC, 0.1])),
    )


@given(plans())
@settings(max_examples=150)
def test_every_conversation_comes_once_an_epoch_and_fits(plan: Plan) -> None:
    count, stream = len(plan.lengths), []
    for step in plan.walk():
        assert len(step.indices) == plan.global_batch or step.index == len(plan) - 1
        spread = [index for rank in step.micro_batches for bin in rank for index in bin.tolist()]
        assert sorted(spread) == sorted(step.indices.tolist())
        assert len({len(rank) for rank in step.micro_batches}) == 1, "equal numbers of micro-batches"
        for bin in (bin for rank in step.micro_batches for bin in rank):
            assert plan.lengths[bin].sum() <= (plan.packed_tokens if len(bin) > 1 else plan.max_tokens)
        assert step.tokens == plan.lengths[step.indices].sum()
        assert step.targets == plan.targets[step.indices].sum()
        assert step.samples == np.count_nonzero(plan.targets[step.indices])
        assert 0 < step.balance <= 1 + 1e-9
        assert 0 < step.density <= plan.max_tokens / plan.packed_tokens
        stream += step.indices.tolist()
    epochs = [stream[start : start + count] for start in range(0, len(stream), count)]
    assert len(stream) == plan.stream
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert step.epoch == len(epochs)


@given(plans(), st.integers(1, 6), st.integers(200, 400))
@settings(max_examples=50)
def test_the_order_does_not_depend_on_ranks_or_budget(plan: Plan, ranks: int, max_tokens: int) -> None:
    other = Plan(
        plan.lengths,
        plan.targets,
        global_batch=plan.global_batch,
        max_tokens=max_tokens,
        ranks=ranks,
        epochs=plan.stream // len(plan.lengths),
        seed=plan.seed,
    )
    assert len(other) == len(plan)
    for one, two in zip(plan.walk(), other.walk(), strict=True):
        assert one.indices.tolist() == two.indices.tolist()
        assert (one.targets, one.epoch) == (two.targets, two.epoch)


def test_an_epochs_order_depends_on_seed_and_epoch_alone() -> None:
    def order(epochs: int, batch: int, seed: int) -> list[int]:
        plan = Plan(np.full(50, 4), np.full(50, 2), global_batch=batch, max_tokens=64, epochs=epochs, seed=seed)
        return [index for step in plan.walk() for index in step.indices.tolist()]

    assert order(3, 7, 42)[50:100] == order(2, 50, 42)[50:]
    assert order(1, 7, 42) != order(1, 7, 43)
    assert order(2, 7, 42)[:50] != order(2, 7, 42)[50:]


def test_steps_can_be_asked_for_in_any_order() -> None:
    plan = Plan(np.arange(1, 101), np.zeros(100), global_batch=9, max_tokens=100, ranks=3, epochs=3, seed=1)
    forwards = [step.indices.tolist() for step in plan.walk()]
    backwards = [plan.step(index).indices.tolist() for index in reversed(range(len(plan)))]
    assert forwards == backwards[::-1]


def test_epoch_ends() -> None:
    plan = Plan(np.full(10, 4), np.full(10, 2), global_batch=4, max_tokens=64, epochs=2, seed=0)
    assert len(plan) == 5
    assert [step for step in range(1, 6) if plan.ends_epoch(step)] == [3, 5]
    assert [plan.step(index).epoch for index in range(5)] == [0.4, 0.8, 1.2, 1.6, 2.0]


def test_max_steps_shortens_the_run() -> None:
    plan = Plan(np.full(10, 4), np.full(10, 2), global_batch=4, max_tokens=64, epochs=2, seed=0, max_steps=2)
    assert len(list(plan.walk())) == len(plan) == 2
    assert plan.ends_epoch(2)


def lognormal(rows: int, limit: int) -> np.ndarray:
    """Token counts like OpenHermes-2.5's: mean about 410, p50 330, p99 about 1,600."""
    draws = np.random.default_rng(0).lognormal(np.log(330), 0.65, rows)
    return np.clip(draws, 8, limit).astype(np.int64)


@pytest.mark.parametrize(("ranks", "max_tokens"), [(8, 9216), (4, 9216), (2, 9216), (2, 4096)])
def test_work_is_balanced_on_realistic_lengths(ranks: int, max_tokens: int) -> None:
    lengths = lognormal(30_000, 4096)
    plan = Plan(lengths, lengths // 2, global_batch=128, max_tokens=max_tokens, ranks=ranks, seed=42, quadratic=QUADRATIC)
    balance, density = plan.sampled_quality(64)
    assert balance >= 0.99
    assert density >= 0.65


def test_differencing_beats_greedy() -> None:
    # The paper's example: longest first gives 17 and 13.
    assert sorted(sum([8, 7, 6, 5, 4][i] for i in bin) for bin in differencing([8, 7, 6, 5, 4], 2)) == [14, 16]
    costs = lognormal(128, 4096).astype(float)
    sums = [costs[bin].sum() for bin in differencing(costs, 8)]
    assert min(sums) / max(sums) > 0.999


def test_a_tight_budget_takes_more_rounds_not_more_tokens() -> None:
    lengths = np.array([60, 60, 60, 40, 40])
    rounds = balanced_bins(lengths, lengths.astype(float), ranks=1, capacity=100)
    assert sorted(len(bin) for (bin,) in rounds) == [1, 2, 2]


def test_a_long_conversation_is_alone_where_few_tokens_are_packed() -> None:
    plan = Plan([90, 20, 20, 20], [1] * 4, global_batch=4, max_tokens=100, packed_tokens=50, seed=None)
    (micro_batches,) = plan.step(0).micro_batches
    assert sorted(plan.lengths[bin].tolist() for bin in micro_batches) == [[20], [20, 20], [90]]


def test_a_million_rows_need_no_preparation() -> None:
    lengths = lognormal(1_000_000, 8000)
    targets = lengths // 2
    tracemalloc.start()
    start = time.perf_counter()
    plan = Plan(lengths, targets, global_batch=128, max_tokens=9216, ranks=8, epochs=3, seed=42, quadratic=QUADRATIC)
    plan.require_fitting(np.arange(len(lengths)), 9216)
    plan.step(0)
    seconds = time.perf_counter() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(plan) == 23_438
    assert seconds < 2
    assert peak < 32e6


def test_a_conversation_over_the_budget_is_named() -> None:
    plan = Plan([5, 300, 7], [1, 1, 1], global_batch=2, max_tokens=100)
    with pytest.raises(ConfigError, match=r"row 81: its 300 tokens .* \(100\).* tokenize.max_tokens \(9216\)"):
        plan.require_fitting([80, 81, 90], 9216)
