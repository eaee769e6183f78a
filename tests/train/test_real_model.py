"""A model that was really trained, SmolLM2-135M-Instruct: skipped unless TALARIA_TEST_SMOLLM2 names its folder.

`benchmarks/real_model.py` builds the folder, and compares a longer training with TRL's too.
"""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from talaria.config.data_settings import Tokenize
from talaria.tokenization import stage as encode
from talaria.train.train_state import TrainJob
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import tiny_pipeline
from tests.train import ranks
from tests.train.plain_loop import plain_loop

MODEL = os.environ.get("TALARIA_TEST_SMOLLM2", "")
STEPS = 3

pytestmark = pytest.mark.skipif(not MODEL, reason="TALARIA_TEST_SMOLLM2 names no folder of SmolLM2-135M-Instruct")


def test_it_follows_the_plain_loop_trains_its_padding_token_and_still_answers(tmp_path: Path) -> None:
    base = tmp_path / "base"  # in fp32: three small steps are less than a step of bf16
    AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).save_pretrained(base)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(base)
    asked = [("What is 2 + 2?", "4"), ("Name a colour.", "Red"), ("Say hello.", "Hello!"), ("Capital of Spain?", "Madrid")]
    messages = [[{"role": "user", "content": one}, {"role": "assistant", "content": other}] for one, other in asked * 3]
    pl.DataFrame({"messages": messages}).write_parquet(tmp_path / "messages.parquet")
    encode.tokenize(tmp_path / "messages.parquet", base, tmp_path / "tokens", Tokenize())
    settings = {"precision": "fp32", "max_steps": STEPS, "global_batch": 4, "lr": 1e-5, "max_tokens_per_device": 64}
    job = TrainJob(tiny_pipeline.config(train=settings), tmp_path / "tokens", base, tmp_path / "out")
    ranks.run(job)
    plain = plain_loop(job, STEPS)
    assert [step["loss"] for step in ranks.steps(job.output)] == pytest.approx(plain.losses, rel=1e-5)
    assert plain.losses[0] < 5.0, "random weights would give 10.8, the logarithm of the vocabulary"
    pad = plain.model.config.pad_token_id
    before, after = (
        load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in (base, job.output / "model")
    )
    expected = plain.model.get_input_embeddings().weight.detach()
    for rows in (slice(None), slice(pad, pad + 1)):
        assert (after - expected)[rows].norm() < 1e-2 * (before - expected)[rows].norm()
    assert AutoTokenizer.from_pretrained(MODEL).convert_ids_to_tokens(pad) == "<|im_end|>"
    model = AutoModelForCausalLM.from_pretrained(job.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(job.output / "model")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
