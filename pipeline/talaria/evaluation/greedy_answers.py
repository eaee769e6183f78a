"""Answers to held-out prompts, compared with the reference answers.

A prompt is the conversation up to the header of its last supervised answer: `input_ids` before the last unbroken stretch of
the loss mask, which by the encoding rule is exactly what a server would feed the model. The reference is that stretch up to
`<|im_end|>`. Prompts are spread evenly over the held-out split, as a data set comes in blocks by source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from talaria.tokenization.dataset import Tokens

if TYPE_CHECKING:
    import torch

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Prompt:
    row: int
    """Row of the messages parquet."""
    ids: Ids
    reference: Ids
    """The supervised answer of the data, without <|im_end|>."""


@dataclass(frozen=True)
class Answer:
    ids: list[int]
    """Generated token ids, without the end token."""
    stopped: bool
    """Whether the answer ended with <|im_end|>, not with another end token or by length."""


def last_answer(ids: Ids, mask: npt.NDArray[np.bool_], end: int) -> tuple[Ids, Ids] | None:
    """Return (prompt, reference) of a conversation; None if no supervised answer ends with `end` (truncated)."""
    supervised = np.flatnonzero(mask)
    if not len(supervised):
        return None
    gaps = np.flatnonzero(np.diff(supervised) > 1)
    start = int(supervised[gaps[-1] + 1 if len(gaps) else 0])
    answer = ids[start : int(supervised[-1]) + 1]
    ends = np.flatnonzero(answer == end)
    return (ids[:start], answer[: ends[0]]) if len(ends) else None


def choose_prompts(tokens: Tokens, count: int, end: int) -> list[Prompt]:
    """Return at most `count` prompts, evenly spaced; always the same ones."""
    count = min(count, len(tokens))
    chosen = []
    for place in np.unique(np.linspace(0, len(tokens) - 1, count).round().astype(np.int64)) if count else ():
        ids, mask, _ = tokens.gather([place])
        found = last_answer(ids, mask, end)
        if found is not None:
            chosen.append(Prompt(int(tokens.rows[place]), *found))
    return chosen


def open_for_answers(folder: str | Path, device: torch.device) -> Any:
    """Open the model for generation with a key-value cache: bf16 on a GPU, fp32 on the CPU, where bf16 is slow."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # redraws its line, which a log file keeps
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).to(device).eval()


def answer_all(
    hf: Any, prompts: Sequence[Prompt], *, end: int, ends: Sequence[int], pad: int, max_new_tokens: int, max_tokens: int
) -> list[Answer]:
    """Return greedy answers in the order of the prompts.

    `ends`: ids that end an answer, `end` (<|im_end|>) among them. A batch holds at most `max_tokens` tokens with its padding
    and the answers to come.
    """
    answers: list[Answer | None] = [None] * len(prompts)
    for places in _batches([len(prompt.ids) for prompt in prompts], max_new_tokens, max_tokens):
        ids, mask = pad_left([prompts[place].ids for place in places], pad)
        for place, tokens in zip(places, _generate(hf, ids, mask, ends, pad, max_new_tokens), strict=True):
            answers[place] = cut(tokens, end, ends)
    return [answer for answer in answers if answer is not None]


def _generate(
    hf: Any, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], ends: Sequence[int], pad: int, max_new_tokens: int
) -> list[list[int]]:
    import torch
    from transformers import GenerationConfig

    from talaria.evaluation.graph_decoding import can_decode, decode

    prompts, visible = (torch.from_numpy(array).to(hf.device) for array in (ids, mask))
    if hf.device.type == "cuda" and can_decode(hf):
        return decode(hf, prompts, visible, ends=ends, max_new_tokens=max_new_tokens)
    how = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(ends), pad_token_id=pad, use_cache=True
    )
    with torch.no_grad():
        out = hf.generate(prompts, attention_mask=visible, generation_config=how)
    generated: list[list[int]] = out[:, ids.shape[1] :].tolist()
    return generated


def cut(generated: Sequence[int], end: int, ends: Sequence[int]) -> Answer:
    """Return the ids before the first end token."""
    for place, token in enumerate(generated):
        if token in ends:
            return Answer(list(generated[:place]), token == end)
    return Answer(list(generated), False)


def _batches(lengths: Sequence[int], new: int, max_tokens: int) -> Iterator[list[int]]:
    """Yield batches of prompts of similar length, longest first, so that running out of memory shows at once."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        longest = lengths[batch[0]] if batch else lengths[place]
        if batch and (len(batch) + 1) * (longest + new) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def pad_left(rows: Sequence[Ids], pad: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (ids, mask), int64[rows, width] both; mask is 0 on padding."""
    width = max(len(row) for row in rows)
    ids = np.full((len(rows), width), pad, np.int64)
    mask = np.zeros((len(rows), width), np.int64)
    for line, row in enumerate(rows):
        ids[line, width - len(row) :] = row
        mask[line, width - len(row) :] = 1
    return ids, mask
