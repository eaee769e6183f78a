"""A tokens folder and tiny models, made once for all tests of the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from talaria.store.store import Store
from talaria.train.distributed import sharding
from talaria.train.model.causal_lm import ModelOptions
from talaria.train.model.loading import load_model
from talaria.train.train_state import TrainJob

from tests.support import tiny_pipeline

torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def small_matrices_are_shared_too() -> Iterator[None]:
    """Models are tiny here, and what ranks do with large matrices is to be tested; forked ranks inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SHARED_FROM", 0)
        yield


@pytest.fixture
def no_room_for_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `shard` or `hybrid` is asked for, ranks are sharded, as a large model's are; forked ranks inherit this."""
    monkeypatch.setattr(sharding, "_FOR_STATE", 0.0)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tokenize and base: 200 small conversations, a Qwen3 of two layers with fp32 random weights."""
    outputs = tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("store")), tiny_pipeline.config())
    # What this imports, 12 seconds of transformers, every rank that is forked later has then.
    load_model(outputs["base"].path, ModelOptions("fp32"), "cpu")
    return {name: output.path for name, output in outputs.items()}


@pytest.fixture
def job(folders: dict[str, Path], tmp_path: Path) -> Callable[..., TrainJob]:
    """job(name, tokens=..., base=..., **train settings) -> TrainJob with the output folder `name`."""

    def make(name: str = "run", *, tokens: Path | None = None, base: Path | None = None, **train: Any) -> TrainJob:
        config = tiny_pipeline.config(train={"hang_timeout": 45} | train)
        return TrainJob(config, tokens or folders["tokenize"], base or folders["base"], tmp_path / name)

    return make
