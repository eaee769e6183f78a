"""What a model is asked in an evaluation: the loss of every held-out conversation, and answers to prompts chosen from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talaria.config.evaluation_settings import EXACT_MATCH, HELDOUT_LOSS, Evaluate
from talaria.evaluation.items import Items, MetricItems, conversation_ids
from talaria.tokenization.dataset import Tokens

if TYPE_CHECKING:
    import torch

    from talaria.evaluation.greedy_answers import Answer, Prompt
    from talaria.evaluation.heldout_loss import HeldOut

CACHED = 4
"""Tokens in a batch of answers for each one in a batch of losses: a cached token has keys and values, but no logits."""
_SOURCE = "source"
"""Column of the data that names where a conversation comes from."""


@dataclass(frozen=True)
class Result:
    heldout: HeldOut
    sources: dict[str, float]
    """Held-out loss by source."""
    answers: list[Answer]
    texts: list[str]
    matches: list[bool]

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "loss": self.heldout.loss,
            **mixture_losses(self.heldout),
            "sources": self.sources,
            "exact_match": _share(self.matches),
            "stopped": _share([answer.stopped for answer in self.answers]),
        }


@dataclass(frozen=True)
class Exam:
    """The held-out conversations and the prompts chosen from them."""

    tokens: Tokens
    settings: Evaluate
    prompts: list[Prompt]
    ends: list[int]
    """Ids that end an answer, the chat template's first; the same for every model: a base is not held to its own habits."""
    pad: int
    decode: Callable[[Any], str]
    named: list[str]
    """A digest of each held-out conversation."""
    sources: list[list[str]]
    """Where each conversation comes from, as its row says; empty where it says nothing."""

    @classmethod
    def of(cls, tokens: Tokens, settings: Evaluate, model: Path, data: Path | None = None) -> Exam:
        from transformers import AutoTokenizer

        from talaria.evaluation.greedy_answers import choose_prompts
        from talaria.tokenization.rendered.prompt import end_ids

        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        ends = end_ids(model)
        prompts = choose_prompts(tokens, settings.prompts, ends[0])
        named, sources = conversation_ids(tokens), _sources(tokens, data)
        return cls(tokens, settings, prompts, ends, ends[-1], lambda ids: str(tokenizer.decode(ids)), named, sources)

    def take(self, folder: Path, device: torch.device) -> Result:
        heldout = self.loss_of(folder, device)
        answers, texts = self.answers_of(folder, device)
        references = [self.decode(prompt.reference) for prompt in self.prompts]
        matches = [text.strip() == reference.strip() for text, reference in zip(texts, references, strict=True)]
        return Result(heldout, self.items(heldout).metrics[HELDOUT_LOSS].by_tag(), answers, texts, matches)

    def answers_of(self, folder: Path, device: torch.device) -> tuple[list[Answer], list[str]]:
        """Return a model's answers to the prompts, in their order, as ids and as texts."""
        from talaria.evaluation.greedy_answers import answer_all, open_for_answers

        hf = open_for_answers(folder, device)
        answers = answer_all(
            hf,
            self.prompts,
            end=self.ends[0],
            ends=self.ends,
            pad=self.pad,
            max_new_tokens=self.settings.max_new_tokens,
            max_tokens=CACHED * self.settings.batch_tokens,
        )
        free(hf)
        return answers, [self.decode(answer.ids) for answer in answers]

    def loss_of(self, folder: Path, device: torch.device) -> HeldOut:
        from talaria.evaluation.heldout_loss import heldout_loss, open_model

        model = open_model(folder, device)
        heldout = heldout_loss(model, self.tokens, self.settings.batch_tokens)
        free(model)
        return heldout

    def items(self, heldout: HeldOut, matches: Sequence[bool] | None = None) -> Items:
        """Return how a model did on each conversation, and, with `matches`, on each prompt."""
        found = Items()
        found.add(HELDOUT_LOSS, heldout_items(self.tokens, heldout, self.named, self.sources))
        if matches:
            places = np.searchsorted(self.tokens.rows, [prompt.row for prompt in self.prompts]).tolist()
            right = np.array(matches, dtype=np.bool_)
            names, tags = [self.named[place] for place in places], [self.sources[place] for place in places]
            found.add(EXACT_MATCH, MetricItems(names, right.astype(np.float64), np.ones(len(right)), right, tags))
        return found

    def described(self, digest: str | None) -> dict[str, Any]:
        supervised = int(self.tokens.supervised.sum())
        return {"conversations": len(self.tokens), "supervised_tokens": supervised, "digest": digest}

    def samples(self, tuned: Result, base: Result | None) -> list[dict[str, Any]]:
        return [
            {
                "row": prompt.row,
                "prompt": self.decode(prompt.ids),
                "reference": self.decode(prompt.reference),
                "base": base.texts[place] if base else None,
                "tuned": tuned.texts[place],
                "base_match": base.matches[place] if base else None,
                "tuned_match": tuned.matches[place],
                "tuned_stopped": tuned.answers[place].stopped,
            }
            for place, prompt in enumerate(self.prompts)
        ]


def heldout_items(
    tokens: Tokens, heldout: HeldOut, named: list[str] | None = None, sources: list[list[str]] | None = None
) -> MetricItems:
    """Return the mean NLL of each conversation, weighing as many as it has targets."""
    weights = tokens.targets.astype(np.float64)
    means = heldout.per_conversation / np.maximum(weights, 1.0)
    none = np.zeros(len(tokens), dtype=np.bool_)
    return MetricItems(named or conversation_ids(tokens), means, weights, none, sources or [[] for _ in range(len(tokens))])


def _sources(tokens: Tokens, data: Path | None) -> list[list[str]]:
    """Where each conversation comes from: its source of a mixture, and the column `source` of the messages parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[list[str]] = [[] for _ in range(len(tokens))]
    for name, places in tokens.layout.by_source(tokens.rows) if tokens.layout else ():
        for place in np.arange(len(tokens))[places].tolist():
            found[place].append(name)
    if data is None or _SOURCE not in (schema := pq.read_schema(data)).names or schema.field(_SOURCE).type != pa.string():
        return found
    column = pq.read_table(data, columns=[_SOURCE])[_SOURCE].take(pa.array(tokens.rows))
    for tags, source in zip(found, column.to_pylist(), strict=True):
        if source and source not in tags:
            tags.append(source)
    return found


def mixture_losses(heldout: HeldOut) -> dict[str, Any]:
    """The losses of a mixture's sources; nothing for data of a single one."""
    return {"by_source": dict(heldout.by_source)} if heldout.by_source else {}


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def free(model: torch.nn.Module) -> None:
    """Free the memory of the weights before the next model is opened."""
    import torch

    model.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
