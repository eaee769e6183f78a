"""How `train.sharding` lays a model out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from talaria.common.errors import ConfigError
from talaria.train.distributed import sharding
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.distributed.sharding import ReplicaLayout, _share, choose_layout, state_bytes

GB = 10**9
CARD = 85 * GB  # an H100


def world(size: int, local: int) -> ProcessGroup:
    return ProcessGroup(0, size, 0, local, torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "local", "state", "expected"),
    [
        (1, 1, 64 * GB, ReplicaLayout(1, 1)),
        (1, 1, 128 * GB, ReplicaLayout(1, 1)),  # there is nothing to share it with
        (8, 8, 64 * GB, ReplicaLayout(8, 1)),  # Qwen3-4B with fp32 masters
        (16, 8, 64 * GB, ReplicaLayout(16, 1)),
        (8, 8, 128 * GB, ReplicaLayout(1, 8)),
        (16, 8, 128 * GB, ReplicaLayout(2, 8)),
        (8, 8, 69 * GB, ReplicaLayout(1, 8)),  # it would leave less than a fifth for activations
    ],
)
def test_auto_shards_what_does_not_fit(size: int, local: int, state: int, expected: ReplicaLayout) -> None:
    assert choose_layout("auto", 0, world(size, local), state, CARD) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"sharding": "replicate"}, ReplicaLayout(16, 1)),
        ({"sharding": "shard"}, ReplicaLayout(1, 16)),
        ({"sharding": "hybrid"}, ReplicaLayout(2, 8)),
        ({"sharding": "hybrid", "shard_size": 4}, ReplicaLayout(4, 4)),
    ],
)
def test_what_is_asked_for_is_done_with_what_fits_nowhere_whole(settings: dict[str, Any], expected: ReplicaLayout) -> None:
    assert choose_layout(settings["sharding"], settings.get("shard_size", 0), world(16, 8), 128 * GB, CARD) == expected


@pytest.mark.parametrize("kind", ["shard", "hybrid"])
def test_ranks_that_have_room_for_whole_weights_in_a_step_keep_them(kind: Any) -> None:
    """They would hold more at once if they fetched them, and be slower."""
    assert choose_layout(kind, 0, world(16, 8), 64 * GB, CARD) == ReplicaLayout(16, 1)


def test_groups_must_divide_the_ranks() -> None:
    with pytest.raises(ConfigError, match="8 ranks cannot be split into groups of 3"):
        choose_layout("hybrid", 3, world(8, 8), 64 * GB, CARD)


@pytest.mark.parametrize(("precision", "expected"), [("mixed", 16), ("fp32", 16), ("bf16", 8)])
def test_state_of_a_parameter(precision: Any, expected: int) -> None:
    model = torch.nn.Linear(10, 10, bias=False)
    assert state_bytes(model, precision) == 100 * expected
    assert state_bytes(model, precision, offloaded=True) == 100 * {"mixed": 6, "fp32": 8, "bf16": 4}[precision]


def test_replicated_ranks_share_the_optimisers_state() -> None:
    model = torch.nn.Linear(10, 10, bias=False)
    assert [state_bytes(model, precision, 4) for precision in ("mixed", "fp32", "bf16")] == [850, 1000, 500]
    matrix, vector, odd = (torch.nn.Parameter(torch.zeros(*shape)) for shape in ((6, 4), (8,), (3, 3)))
    spans = [_share(matrix, ProcessGroup(rank, 4, rank, 4, torch.device("cpu"))) for rank in range(4)]
    assert [(span.start, span.stop) for span in spans] == [(0, 6), (6, 12), (12, 18), (18, 24)]
    for whole in (vector, odd):  # each rank updates all of it, and the first writes it
        spans = [_share(whole, ProcessGroup(rank, 4, rank, 4, torch.device("cpu"))) for rank in range(4)]
        assert [(span.partial, span.written_here) for span in spans] == [(False, rank == 0) for rank in range(4)]


def test_a_small_matrix_is_updated_by_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SHARED_FROM", 24)
    small, large = (torch.nn.Parameter(torch.zeros(*shape)) for shape in ((5, 4), (6, 4)))
    assert [_share(param, world(4, 4)).partial for param in (small, large)] == [False, True]


def test_frozen_parameters_have_no_state() -> None:
    model = torch.nn.Linear(10, 10, bias=False).requires_grad_(False)
    assert state_bytes(model, "mixed") == 200
