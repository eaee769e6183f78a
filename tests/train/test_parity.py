"""The same losses as plain Hugging Face code gives: padded batches, the library's own loss, PyTorch's own optimiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talaria.config.data_settings import Tokenize
from talaria.tokenization import stage as encode
from talaria.train.batching.plan import Plan
from talaria.train.train_state import TrainJob
from transformers import AutoModelForCausalLM

from tests.train import ranks
from tests.train.plain_loop import padded, plain_loop, train_split

STEPS = 20


def test_the_losses_are_those_of_a_plain_padded_loop(job: Callable[..., TrainJob]) -> None:
    ours = job(epochs=2, max_tokens_per_device=160, min_lr=1e-3, clip=0.5)
    ranks.run(ours, 2)
    assert [step["loss"] for step in ranks.steps(ours.output)[:STEPS]] == pytest.approx(plain_loop(ours, STEPS).losses, rel=1e-6)


def test_trl_reports_the_same_first_loss(job: Callable[..., TrainJob], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is in the bench extra")
    import datasets

    ours = job(max_steps=1, global_batch=16)
    ranks.run(ours)
    tokens = train_split(ours)
    first = Plan(tokens.lengths, tokens.targets, global_batch=16, max_tokens=10**6, seed=ours.config.train.seed).indices(0)
    # TRL makes its labels from the folder's assistant_masks.
    data = datasets.load_from_disk(str(ours.tokens))["train"].select(first.tolist())
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        logging_steps=1,
        learning_rate=0.0,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        max_length=None,
    )
    model = AutoModelForCausalLM.from_pretrained(ours.base, dtype=torch.float32)
    from transformers import AutoTokenizer

    trainer = trl.SFTTrainer(
        model=model, args=arguments, train_dataset=data, processing_class=AutoTokenizer.from_pretrained(ours.tokenizer)
    )
    trainer.train()
    logged = next(record["loss"] for record in trainer.state.log_history if "loss" in record)
    assert ranks.steps(ours.output)[0]["loss"] == pytest.approx(logged, rel=1e-4)


def test_a_mean_over_samples_weighs_conversations_alike(job: Callable[..., TrainJob]) -> None:
    ours = job(max_steps=1, reduction="sample", max_tokens_per_device=160)
    ranks.run(ours, 2)
    tokens = train_split(ours)
    indices = Plan(tokens.lengths, tokens.targets, global_batch=16, max_tokens=10**6, seed=ours.config.train.seed).indices(0)
    model = AutoModelForCausalLM.from_pretrained(ours.base, dtype=torch.float32)
    with torch.no_grad():
        means = [float(model(**padded(tokens, np.array([index]))).loss) for index in indices]
    assert ranks.steps(ours.output)[0]["loss"] == pytest.approx(sum(means) / len(means), rel=1e-5)


@pytest.fixture
def some_unsupervised(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Twelve conversations of which every third has no supervised token."""
    import polars as pl

    messages: list[list[dict[str, Any]]] = []
    for row in range(12):
        answer = {"role": "assistant", "content": f"{row}!", "train": row % 3 != 0}
        messages.append([{"role": "user", "content": f"Say {row}", "train": None}, answer])
    pl.DataFrame({"messages": messages}).write_parquet(tmp_path / "some.parquet")
    encode.tokenize(tmp_path / "some.parquet", folders["base"], tmp_path / "some", Tokenize())
    return tmp_path / "some"


def silence(tokens: Path) -> None:
    """Switch every mask of a tokens folder off, in place."""
    import datasets

    data = datasets.load_from_disk(str(tokens))
    quiet = data.map(lambda row: {"assistant_masks": [False] * len(row["input_ids"])}, features=data.features)
    quiet.save_to_disk(str(tokens) + "-quiet")


def test_a_batch_without_supervised_tokens_is_harmless(job: Callable[..., TrainJob], some_unsupervised: Path) -> None:
    silence(some_unsupervised)
    quiet = job(tokens=Path(f"{some_unsupervised}-quiet"), global_batch=5, epochs=1)
    ranks.run(quiet, 2)
    for step in ranks.steps(quiet.output):
        assert (step["loss"], step["grad_norm"], step["supervised_tokens"]) == (0, 0, 0)


def test_more_ranks_than_conversations(job: Callable[..., TrainJob], some_unsupervised: Path) -> None:
    one, four = (job(name, tokens=some_unsupervised, global_batch=3, epochs=1) for name in ("one", "four"))
    ranks.run(one, 1)
    ranks.run(four, 4)
    losses = [step["loss"] for step in ranks.steps(one.output)]
    assert [step["loss"] for step in ranks.steps(four.output)] == pytest.approx(losses, rel=1e-5)
