"""What LoRA's dropout drops does not depend on how the work is divided."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from talaria.train.model.adapter_dropout import AdapterDropout, TokenKeys, mix_, token_keys
from talaria.train.model.causal_lm import ModelOptions, sum_loss
from talaria.train.model.loading import load_model
from talaria.train.model.lora import LoraOptions
from talaria.train.train_state import TrainJob

from tests.train import ranks
from tests.train.tiny_models import batch_of, conversations, save_tiny

LENGTHS = [30, 20, 50]


def losses(job: TrainJob) -> list[float]:
    return [step["loss"] for step in ranks.steps(job.output)]


def test_ranks_micro_batches_and_a_resume_leave_the_curve_as_it_is(job: Callable[..., TrainJob]) -> None:
    adapters = {"rank": 4, "dropout": 0.3}
    one, moved = (job(name, lora=adapters, max_steps=7, max_tokens_per_device=2048) for name in ("one", "moved"))
    without = job("without", lora=adapters | {"dropout": 0.0}, max_steps=7)
    ranks.run(one)
    ranks.run(without)
    small = job("moved", lora=adapters, max_steps=7, max_tokens_per_device=160, activation_checkpointing="full")
    stopped = ranks.Ranks(small, 2, ranks.at_step(3, 0, signal.SIGTERM))
    assert stopped.codes() == [0, 0], stopped.log()
    ranks.run(moved)
    assert ranks.events(moved.output, "resume")[0]["step"] == 4
    assert losses(moved) == pytest.approx(losses(one), rel=1e-5)
    assert losses(without)[-1] != pytest.approx(losses(one)[-1], rel=1e-5)


def dropped(name: str = "layer.0", step: int = 3, seed: int = 1, p: float = 0.25, share: float = 0.6) -> torch.Tensor:
    """bool[T, K]"""
    keys = TokenKeys(seed)
    keys.set(batch_of(conversations(LENGTHS), share), step)
    return AdapterDropout(p, name, keys)(torch.ones(1, sum(LENGTHS), 512))[0] == 0


def test_the_share_is_that_of_the_setting_in_every_row_and_column() -> None:
    mask = dropped().float()
    assert mask.mean() == pytest.approx(0.25, abs=0.01)
    assert mask.mean(0).std() == pytest.approx((0.25 * 0.75 / 100) ** 0.5, rel=0.15)
    assert mask.mean(1).std() == pytest.approx((0.25 * 0.75 / 512) ** 0.5, rel=0.25)


@pytest.mark.parametrize("other", [{"name": "layer.1"}, {"step": 4}, {"seed": 2}])
def test_another_module_step_or_seed_drops_something_else(other: dict[str, object]) -> None:
    both = (dropped() & dropped(**other)).float().mean()  # type: ignore[arg-type]
    assert both == pytest.approx(0.25**2, abs=0.01)
    assert torch.equal(dropped(), dropped())


def test_tokens_and_conversations_drop_something_else_each() -> None:
    mask = dropped().float() - 0.25
    correlation = mask @ mask.T / (512 * 0.25 * 0.75) - torch.eye(sum(LENGTHS))
    assert correlation.abs().max() < 0.3


def test_what_is_kept_is_scaled_and_nothing_is_dropped_in_evaluation(tmp_path: Path) -> None:
    mask = dropped()
    keys = TokenKeys(1)
    keys.set(batch_of(conversations(LENGTHS)), 3)
    module = AdapterDropout(0.25, "layer.0", keys)
    x = torch.randn(1, sum(LENGTHS), 512, requires_grad=True)
    y = module(x)
    assert torch.equal(y[0], torch.where(mask, 0.0, x[0] / 0.75))
    y.sum().backward()
    assert torch.equal(x.grad[0] == 0, mask)
    assert module.eval()(x) is x
    model = load_model(save_tiny(tmp_path), ModelOptions("fp32", lora=LoraOptions(4, 32.0, 0.5, "all-linear")), "cpu")
    assert token_keys(model)
    assert sum(isinstance(part, AdapterDropout) for part in model.modules()) == 3 * 7
    assert not any(isinstance(part, torch.nn.Dropout) for part in model.modules())
    sum_loss(model.eval(), batch_of(conversations([5, 3])))


def test_the_hash_is_one_to_one() -> None:
    assert len(mix_(torch.arange(-(2**15), 2**15, dtype=torch.int32)).unique()) == 2**16
    assert mix_(torch.tensor([1], dtype=torch.int32)).item() == 1753845952  # lowbias32(1), from its author's table
