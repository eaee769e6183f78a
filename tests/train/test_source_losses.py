"""The loss of each source of a mixture, in every step's line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talaria.tokenization.dataset import SOURCES, TRAIN, open_tokens
from talaria.train.batching.plan import Plan
from talaria.train.train_state import TrainJob
from transformers import AutoModelForCausalLM

from tests.train import ranks
from tests.train.plain_loop import padded

RANGES = [["letters/a", 0, 90], ["b", 90, 95], ["letters/a", 95, 120], ["c", 120, 200]]


@pytest.fixture(scope="module")
def mixture(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokens folder of three sources; the second has few conversations, so that not every step has one of them."""
    folder = tmp_path_factory.mktemp("mixture") / "tokens"
    shutil.copytree(folders["tokenize"], folder)
    (folder / SOURCES).write_text(json.dumps({"held_out": 0, "ranges": RANGES}))
    return folder


def by_source(line: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("loss/"): value for name, value in line.items() if name.startswith("loss/")}


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_each_is_the_mean_over_its_own_conversations_on_any_number_of_ranks(
    job: Callable[..., TrainJob], mixture: Path, reduction: str
) -> None:
    settings = {"max_steps": 6, "global_batch": 8, "reduction": reduction}
    one = job("one", tokens=mixture, **settings)
    two = job("two", tokens=mixture, max_tokens_per_device=160, sharding="shard", **settings)
    ranks.run(one)
    ranks.run(two, 2)
    lines = ranks.steps(one.output)
    for mine, other in zip(lines, ranks.steps(two.output), strict=True):
        assert by_source(other) == pytest.approx(by_source(mine), rel=1e-5)
    assert {name for line in lines for name in by_source(line)} == {"letters/a", "b", "c"}
    assert any("b" not in by_source(line) for line in lines), "no line for a source that a step does not train"
    tokens = open_tokens(mixture)[TRAIN]
    assert tokens is not None
    plan = Plan(tokens.lengths, tokens.targets, global_batch=8, max_tokens=10**6, seed=one.config.train.seed)
    model = AutoModelForCausalLM.from_pretrained(one.base, dtype=torch.float32)
    for step in (0, 1):  # the first update has learning rate 0
        expected: dict[str, list[tuple[float, float]]] = {}
        for index in plan.indices(step):
            row = tokens.rows[index]
            name = next(name for name, start, stop in RANGES if start <= row < stop)
            loss = float(model(**padded(tokens, np.array([index]))).loss.detach())
            expected.setdefault(name, []).append((loss, 1.0 if reduction == "sample" else float(tokens.targets[index])))
        means = {name: sum(loss * share for loss, share in of) / sum(share for _, share in of) for name, of in expected.items()}
        assert by_source(lines[step]) == pytest.approx(means, rel=1e-5)


def test_data_of_one_source_have_none(job: Callable[..., TrainJob]) -> None:
    plain = job(max_steps=2)
    ranks.run(plain)
    assert all(by_source(line) == {} for line in ranks.steps(plain.output))
