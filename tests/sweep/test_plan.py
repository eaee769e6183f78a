"""Which trials a sweep has, and which sweeps are refused before anything is made."""

from __future__ import annotations

from typing import Any

import pytest
from talaria.common.errors import ConfigError
from talaria.sweep.plan import plan

from tests.support import tiny_pipeline


def trials(**sweep: Any) -> list[dict[str, Any]]:
    return [dict(trial.settings) for trial in plan(tiny_pipeline.config(sweep=sweep))]


def test_without_a_number_of_trials_every_combination_comes_once() -> None:
    found = trials(values={"train.lr": [1e-4, 1e-3], "train.lora.rank": [0, 4]})
    assert found == [{"train.lr": lr, "train.lora.rank": rank} for lr in (1e-4, 1e-3) for rank in (0, 4)]
    planned = plan(tiny_pipeline.config(sweep={"values": {"train.lr": [1e-4, 1e-3]}, "references": 1}))
    assert [trial.config.train.lr for trial in planned] == [1e-4, 1e-3]
    assert [trial.reference for trial in planned] == [True, False]


def test_drawn_trials_differ_and_depend_on_the_seed_alone() -> None:
    ranges = {"train.lr": [1e-5, 1e-2], "train.global_batch": [8, 64]}
    space = {"ranges": ranges, "values": {"train.reduction": ["token", "sample"]}}
    found = trials(**space, trials=20, seed=3)
    assert found == trials(**space, trials=20, seed=3) != trials(**space, trials=20, seed=4)
    assert len({str(own) for own in found}) == 20
    assert all(1e-5 <= own["train.lr"] <= 1e-2 and own["train.global_batch"] in range(8, 65) for own in found)
    assert sum(own["train.lr"] < 3e-4 for own in found) in range(5, 16), "evenly on a logarithmic scale"
    some = trials(values={"train.lr": [1e-4, 1e-3], "train.seed": [1, 2, 3]}, trials=6)
    assert len({str(own) for own in some}) == 6, "drawn without repetition, until there are no more"


@pytest.mark.parametrize(
    ("sweep", "sentence"),
    [
        ({}, "There is nothing to sweep over; set sweep.values"),
        ({"values": {"tokenize.max_tokens": [1, 2]}}, "tokenize.max_tokens is no setting of train that changes the result"),
        ({"values": {"train.num_processes": [1, 2]}}, "train.num_processes is no setting of train that changes the result"),
        ({"values": {"train.lrr": [1]}}, "train.lrr is no setting of train"),
        ({"values": {"train.lr": []}}, "train.lr has no values"),
        ({"values": {"train.lr": [1e-4, -1]}}, "trial train.lr=-1: train.lr: should be greater than 0, got -1."),
        ({"values": {"train.fp8": [False, True]}}, "trial train.fp8=True: fp8 needs precision mixed or bf16"),
        ({"values": {"train.seed": [1, 1]}}, "train.seed=1 and train.seed=1 are one training; leave one out."),
        ({"values": {"train.lr": [1e-4]}, "trials": 2}, "1 combinations, fewer than sweep.trials, 2."),
        ({"values": {"train.seed": list(range(1001))}}, "1,001 combinations, and 1,000 is the most"),
        ({"values": {"train.lr": [1]}, "ranges": {"train.lr": [1, 2]}, "trials": 1}, "is in sweep.values and in sweep.ranges"),
        ({"ranges": {"train.lr": [1e-5, 1e-4]}}, "sweep.ranges has endless combinations; set sweep.trials."),
        ({"ranges": {"train.lr": [1e-4, 1e-5]}, "trials": 3}, "train.lr needs two numbers [lowest, highest] above 0"),
        ({"ranges": {"train.reduction": [1, 2]}, "trials": 3}, "train.reduction needs two numbers"),
        ({"ranges": {"train.seed": [1, 3]}, "trials": 9}, "there are no 9 different trials in these ranges"),
    ],
    ids=str,
)
def test_a_sweep_that_cannot_be_run_is_refused(sweep: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        trials(**sweep)
    assert sentence in str(refused.value)


def test_a_sweep_without_held_out_conversations_is_refused() -> None:
    config = tiny_pipeline.config(sweep={"values": {"train.lr": [1e-4]}}, tokenize={"validation_fraction": 0})
    with pytest.raises(ConfigError, match="compares held-out losses; set tokenize"):
        plan(config)
