"""Decoding with a fixed cache gives the answers of transformers' own `generate`."""

import numpy as np
import pytest
import torch
from talaria.evaluation.graph_decoding import can_decode, decode
from talaria.evaluation.greedy_answers import open_for_answers
from transformers import GenerationConfig

from tests.train.tiny_models import VOCAB, save_tiny

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prompts():
    """Four rows, padded on the left, and the places of their tokens."""
    lengths = [3, 11, 1, 7]
    ids = torch.from_numpy(np.random.default_rng(5).integers(1, VOCAB, (len(lengths), max(lengths))))
    mask = torch.tensor([[0] * (max(lengths) - n) + [1] * n for n in lengths])
    return (ids * mask).to(DEVICE), mask.to(DEVICE)


def generated(hf, ids, mask, new, ends):
    how = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=ends, pad_token_id=0)
    return hf.generate(ids, attention_mask=mask, generation_config=how)[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "mistral"])
def test_decoding_gives_the_tokens_of_generate(tmp_path, family):
    folder = save_tiny(tmp_path, family, **({"sliding_window": None} if family == "mistral" else {}))
    ids, mask = prompts()
    want = generated(open_for_answers(folder, DEVICE).float(), ids, mask, 20, [VOCAB])
    hf = open_for_answers(folder, DEVICE).float()
    assert can_decode(hf)
    assert decode(hf, ids, mask, ends=[VOCAB], max_new_tokens=20) == want
    assert decode(hf, ids, mask, ends=[VOCAB], max_new_tokens=1) == [row[:1] for row in want]
    assert len({tuple(row) for row in want}) == len(want)


def test_decoding_ends_when_every_answer_has(tmp_path):
    hf = open_for_answers(save_tiny(tmp_path), DEVICE).float()
    ids, mask = prompts()
    tokens = decode(hf, ids, mask, ends=range(VOCAB), max_new_tokens=200)
    assert all(len(row) < 50 for row in tokens)


def test_models_with_windows_are_left_to_transformers(tmp_path):
    windowed = save_tiny(tmp_path, "qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not can_decode(open_for_answers(windowed, DEVICE))
