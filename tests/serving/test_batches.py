"""Answers that are written together are those that transformers' `generate` writes alone, whenever they join and leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from talaria.serving.decoding.batch import Batch, Generation, TextPiece
from talaria.serving.decoding.sampling import Sampler, Sampling, pick_all
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.train.tiny_models import VOCAB, save_tiny

WINDOWED = {
    "mistral": {"sliding_window": 6},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "olmo3": {"sliding_window": 6},
}
PLAIN = ["qwen3", "qwen2", "llama", "phi3", "granite", "smollm3"]


class NoText:
    """An answer whose text nobody reads."""

    stopped = False

    def add(self, token: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def generation(prompt: list[int], limit: int) -> Generation:
    text: Any = NoText()
    return Generation(prompt, limit, Sampler(Sampling()), text, lambda piece: None)


def alone(hf: Any, prompt: list[int], limit: int) -> list[int]:
    how = GenerationConfig(do_sample=False, max_new_tokens=limit, eos_token_id=VOCAB, pad_token_id=0)
    with torch.no_grad():
        return hf.generate(torch.tensor([prompt]), generation_config=how)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", [*PLAIN, *WINDOWED])
@torch.inference_mode()
def test_answers_written_together_are_those_written_alone(tmp_path: Path, family: str) -> None:
    hf: Any = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path, family, pad_token_id=0, **WINDOWED.get(family, {}))).eval()
    draw = np.random.default_rng(3)
    lengths, limits, joins = [3, 17, 1, 9, 30, 5], [40, 4, 25, 1, 12, 80], [0, 0, 2, 2, 9, 30]
    rows = [generation(draw.integers(1, VOCAB, n).tolist(), limit) for n, limit in zip(lengths, limits, strict=True)]
    batch, widths = Batch(hf, 0), []

    def progress(there: list[Generation], scores: torch.Tensor) -> None:
        tokens = pick_all([row.sampler for row in there], scores)
        batch.drop([row for row, token in zip(there, tokens, strict=True) if row.take(token, frozenset())])

    for turn in range(120):
        if new := [row for row, at in zip(rows, joins, strict=True) if at == turn]:
            progress(new, batch.join(new))
        if batch.rows:
            progress(list(batch.rows), batch.step())
        widths.append(batch.width)
    assert not batch.rows
    assert widths[-1] == 0
    for row in rows:
        assert row.tokens == alone(hf, row.prompt, row.limit), f"prompt of {len(row.prompt)}"


def test_what_was_padding_for_all_is_given_back(tmp_path: Path) -> None:
    hf: Any = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path)).eval()
    long, short = generation(list(range(1, 101)), 2), generation([1, 2, 3], 50)
    batch = Batch(hf, 0)
    with torch.inference_mode():
        for row, token in zip((long, short), pick_all([long.sampler] * 2, batch.join([long, short])), strict=True):
            row.take(token, frozenset())
        assert batch.width == 100
        batch.drop([long])
    assert batch.width == 3


def test_a_piece_comes_when_its_text_is_certain() -> None:
    pieces: list[TextPiece] = []

    class Text(NoText):
        def add(self, token: int) -> str:
            return {1: "a", 2: "", 3: "b"}[token]

        def finish(self) -> str:
            return "rest"

    text: Any = Text()
    for streamed, expected in ((True, ["a", "b", "rest"]), (False, ["abrest"])):
        pieces.clear()
        row = Generation([1], 9, Sampler(Sampling()), text, pieces.append, streamed)
        assert [row.take(token, frozenset([8])) for token in (1, 2, 3, 8)] == [False, False, False, True]
        assert [piece.text for piece in pieces] == expected
        assert pieces[-1].finish == "stop"
        assert pieces[-1].tokens == 4
