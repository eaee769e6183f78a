"""Prompts are what a server would feed the model; answers end where the model ends them."""

from __future__ import annotations

import numpy as np
import pytest
from talaria.evaluation.greedy_answers import Answer, Prompt, answer_all, choose_prompts, cut, last_answer, open_for_answers
from talaria.tokenization import chatml as chat
from talaria.tokenization.dataset import open_tokens
from talaria.tokenization.loading import load

END = 9


def ids(*values):
    return np.array(values, np.int32)


def mask(*values):
    return np.array(values, np.bool_)


@pytest.mark.parametrize(
    ("tokens", "supervised", "prompt", "reference"),
    [
        ([1, 2, 3, 4, END, 5], [0, 0, 1, 1, 1, 1], [1, 2], [3, 4]),  # the line break after the end is no part of the answer
        ([1, 2, END, 3, 4, END], [0, 1, 1, 0, 1, 1], [1, 2, END, 3], [4]),  # two turns: the last one
        ([1, 2, END, 3, 4], [0, 1, 1, 0, 0], [1], [2]),  # a conversation that ends with a question
        ([1, END, 5], [0, 1, 1], [1], []),  # an empty answer
    ],
)
def test_the_prompt_ends_where_the_last_supervised_answer_begins(tokens, supervised, prompt, reference):
    found = last_answer(ids(*tokens), mask(*supervised), END)
    assert found is not None
    assert [part.tolist() for part in found] == [prompt, reference]


def test_an_answer_that_was_cut_off_is_no_reference():
    assert last_answer(ids(1, 2, 3), mask(0, 1, 1), END) is None
    assert last_answer(ids(1, 2), mask(0, 0), END) is None


def test_prompts_are_what_a_server_feeds_and_come_from_everywhere(folders):
    import polars as pl

    split = open_tokens(folders["tokenize"])["validation"]
    tokenizer = load(folders["tokenize"] / "tokenizer", "tokenizers")
    chosen = choose_prompts(split, 8, tokenizer.end)
    assert len(chosen) == 8
    assert (chosen[0].row, chosen[-1].row) == (split.rows[0], split.rows[-1])
    messages = pl.read_parquet(folders["convert"] / "messages.parquet")["messages"]
    for prompt in chosen:
        *before, answer = messages[prompt.row].to_list()
        assert prompt.ids.tolist() == tokenizer.ids(chat.prompt(before))[0]
        assert prompt.reference.tolist() == tokenizer.ids([chat.Segment(answer["content"])])[0]
    assert [p.row for p in choose_prompts(split, 8, tokenizer.end)] == [p.row for p in chosen]
    assert len(choose_prompts(split, 10_000, tokenizer.end)) == len(split)
    assert choose_prompts(split, 0, tokenizer.end) == []


def test_an_answer_is_what_comes_before_the_first_end():
    assert cut([1, 2, END, 3], END, [END, 8]) == Answer([1, 2], True)
    assert cut([1, 8, END], END, [END, 8]) == Answer([1], False)
    assert cut([1, 2], END, [END, 8]) == Answer([1, 2], False)


def test_answers_do_not_depend_on_what_shares_their_batch(folders):
    import torch

    split = open_tokens(folders["tokenize"])["validation"]
    tokenizer = load(folders["tokenize"] / "tokenizer", "tokenizers")
    prompts = choose_prompts(split, 12, tokenizer.end)
    assert len({len(prompt.ids) for prompt in prompts}) > 2  # padding happens
    model = open_for_answers(folders["train"] / "model", torch.device("cpu"))
    how = {"end": tokenizer.end, "ends": [tokenizer.end], "pad": 0, "max_new_tokens": 8}
    together = answer_all(model, prompts, max_tokens=10_000, **how)
    alone = answer_all(model, prompts, max_tokens=1, **how)
    assert together == alone
    assert any(answer.stopped for answer in together)
    assert answer_all(model, [], max_tokens=1, **how) == []


def test_batches_stay_under_the_token_limit(folders, monkeypatch):
    import torch

    seen = []

    class Model:
        device = torch.device("cpu")

        def generate(self, batch, attention_mask, generation_config):
            seen.append((batch.shape[0], batch.shape[1], attention_mask.sum(1).tolist()))
            return torch.cat([batch, torch.full((len(batch), 1), END)], dim=1)

    prompts = [Prompt(row, np.arange(length, dtype=np.int32), ids()) for row, length in enumerate([5, 50, 20, 6, 19])]
    answers = answer_all(Model(), prompts, end=END, ends=[END], pad=0, max_new_tokens=10, max_tokens=60)
    assert answers == [Answer([], True)] * 5
    assert all(rows * (width + 10) <= 60 for rows, width, _ in seen)
    assert sorted(length for _, _, lengths in seen for length in lengths) == [5, 6, 19, 20, 50]
