"""Batches come in order, the same at any depth, and errors with them."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talaria.tokenization.dataset import Tokens, open_tokens
from talaria.train.batching.dataloader import Loader, filler
from talaria.train.batching.packing import MicroBatch, pack
from talaria.train.batching.plan import Plan
from talaria.train.warm_up import coming_sizes

CPU = torch.device("cpu")


@pytest.fixture
def tokens(folders: dict[str, Path]) -> Tokens:
    found = open_tokens(folders["tokenize"])["train"]
    assert found is not None
    return found


def plan_of(tokens: Tokens, ranks: int = 2) -> Plan:
    return Plan(tokens.lengths, tokens.targets, global_batch=16, max_tokens=128, ranks=ranks, seed=3)


def contents(batches: list[MicroBatch]) -> list[dict[str, Any]]:
    return [{name: tensor.tolist() for name, tensor in batch.tensors().items()} for batch in batches]


def test_depth_changes_nothing(tokens: Tokens) -> None:
    def read(depth: int, start: int = 0) -> list[Any]:
        with Loader(tokens, plan_of(tokens), rank=1, device=CPU, start=start, depth=depth) as loader:
            return [contents(prepared.batches) for prepared in loader]

    assert read(1) == read(4) == read(32)
    assert read(2, start=5) == read(1)[5:]


def test_sizes_are_told_before_they_come(tokens: Tokens) -> None:
    plan = plan_of(tokens)
    own = [batch for step in plan.walk() for batch in step.micro_batches[1] if len(batch)]
    expected = [(len(batch), int(plan.lengths[batch].max())) for batch in own]
    told: list[tuple[int, int]] = []
    with Loader(tokens, plan, rank=1, device=CPU, on_size=lambda *size: told.append(size)) as loader:
        for prepared in loader:
            made = sum(
                len(batch) > 0
                for step in itertools.islice(plan.walk(), prepared.plan.index + 1)
                for batch in step.micro_batches[1]
            )
            assert len(told) >= made
    assert told == expected
    coming = list(coming_sizes(plan, 1, 0))
    assert [size for _, *size in coming] == [list(size) for size in expected]  # all of so short a run
    assert {steps for steps, *_ in coming} == set(range(len(plan)))


def test_ranks_together_have_each_row_once_and_the_plans_counts(tokens: Tokens) -> None:
    plan = plan_of(tokens)
    rows: list[int] = []
    loaders = [Loader(tokens, plan, rank=rank, device=CPU) for rank in range(2)]
    with loaders[0] as one, loaders[1] as two:
        for prepared in zip(one, two, strict=True):
            batches = [batch for part in prepared for batch in part.batches]
            assert sum(len(batch.targets) for batch in batches) == prepared[0].plan.targets
            rows += [row for batch in batches for row in batch.rows.tolist()]
    assert sorted(rows) == sorted(tokens.rows.tolist())


def test_packed_as_they_are_stored(tokens: Tokens) -> None:
    ids, mask, offsets = tokens.gather([4, 9])
    batch = pack(ids, mask, np.diff(offsets), tokens.rows[[4, 9]])
    alone = [tokens.gather([index]) for index in (4, 9)]
    assert batch.input_ids.tolist() == [*alone[0][0].tolist(), *alone[1][0].tolist()]
    assert batch.position_ids.tolist() == [*range(len(alone[0][0])), *range(len(alone[1][0]))]
    assert batch.cu_seqlens.tolist() == [0, len(alone[0][0]), len(ids)]
    for position, target in zip(batch.positions.tolist(), batch.targets.tolist(), strict=True):
        assert mask[position + 1]
        assert ids[position + 1] == target


def test_a_conversations_first_token_is_no_target() -> None:
    everything = pack(np.arange(7, dtype=np.int32), np.ones(7, np.bool_), [3, 4], np.array([0, 1]))
    assert everything.targets.tolist() == [1, 2, 4, 5, 6]
    assert everything.positions.tolist() == [0, 1, 3, 4, 5]


def test_samples_weigh_the_same_whatever_their_length() -> None:
    mask = np.array([0, 1, 1, 0, 1, 0, 0], np.bool_)
    batch = pack(np.arange(7, dtype=np.int32), mask, [3, 2, 2], np.arange(3), per_sample=True)
    assert batch.weights is not None
    assert batch.weights.tolist() == [0.5, 0.5, 1.0]


def test_the_filler_has_no_target() -> None:
    assert filler().targets.tolist() == []
    assert filler().rows.tolist() == []
    assert len(filler().input_ids) == 1


class Broken:
    """Conversations of which one cannot be read."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.rows = tokens, tokens.rows

    def gather(self, indices: Any) -> Any:
        if 7 in indices:
            raise OSError("bad sector")
        return self.tokens.gather(indices)


def test_an_error_in_the_thread_reaches_the_loop(tokens: Tokens) -> None:
    with pytest.raises(OSError, match="bad sector"), Loader(Broken(tokens), plan_of(tokens, 1), rank=0, device=CPU) as loader:
        for _ in loader:
            pass


def test_leaving_early_ends_the_thread(tokens: Tokens) -> None:
    with Loader(tokens, plan_of(tokens), rank=0, device=CPU, depth=1) as loader:
        next(iter(loader))
    assert not any(thread.name == "loader" for thread in threading.enumerate())


def test_the_loop_does_not_wait_where_computing_is_slower(tokens: Tokens) -> None:
    waits = []
    with Loader(tokens, plan_of(tokens), rank=0, device=CPU, depth=2) as loader:
        for _ in loader:
            waits.append(loader.wait_seconds)
            time.sleep(0.05)
    # The first batch is waited for; of the others, the machine's other work may delay a few.
    assert np.median(waits[1:]) < 0.005


def test_targets_are_counted_without_first_tokens(tokens: Tokens) -> None:
    expected = [int(tokens.gather([index])[1][1:].sum()) for index in range(len(tokens))]
    assert tokens.targets.tolist() == expected
