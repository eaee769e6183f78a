"""Answers of a model folder to the prompts of tasks, batched as evaluation's are, and likelihoods of given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from talaria.common.errors import DataError
from talaria.config.evaluation_settings import Evaluate, TaskSettings
from talaria.evaluation.items import MetricItems
from talaria.evaluation.tasks import benchmarks
from talaria.evaluation.tasks.checks import check_tasks
from talaria.evaluation.tasks.judge_model import api_key
from talaria.evaluation.tasks.scoring import TaskResult, judge_answers
from talaria.evaluation.tasks.task_file import TaskItem, load_items
from talaria.evaluation.tasks.verdicts import Verdict

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from talaria.evaluation.greedy_answers import Prompt


@dataclass(frozen=True)
class _Paper:
    """A task as the model gets it."""

    task: TaskSettings
    items: list[TaskItem]
    prompts: list[Prompt]


@dataclass(frozen=True)
class TaskTests:
    """The tasks of a configuration, encoded once by the chat template of the tuned model."""

    settings: Evaluate
    papers: list[_Paper]
    ends: list[int]
    """Ids that end an answer, the chat template's first."""
    tokenizer: Any
    known_benchmarks: list[Any]
    """What lm-evaluation-harness knows of each benchmark."""

    @classmethod
    def of(cls, settings: Evaluate, model: Path) -> TaskTests:
        """Raises UserError, before anything is measured: a file that cannot be used, a prompt that the template does not take,
        a function that is not allowed, a judge's key that is not there.
        """
        from transformers import AutoTokenizer

        from talaria.evaluation.greedy_answers import Prompt
        from talaria.tokenization.rendered.prompt import end_ids, prompt_encoder

        check_tasks(settings)
        encode, papers = prompt_encoder(model), []
        for task in settings.tasks:
            if task.judge_model is not None:
                api_key(task.judge_model)
            items, prompts = load_items(task), []
            for item in items:
                try:
                    ids = np.asarray(encode(item.messages, item.tools), np.int32)
                except DataError as error:
                    raise DataError(f"task {task.name}, {item.id}: {error}") from None
                prompts.append(Prompt(-1, ids, np.empty(0, np.int32)))
            papers.append(_Paper(task, items, prompts))
        known = [benchmarks.manager(one) for one in settings.benchmarks]
        return cls(settings, papers, end_ids(model), AutoTokenizer.from_pretrained(model, trust_remote_code=False), known)

    def questions(self) -> list[tuple[str, TaskItem]]:
        """Return what the benchmarks will ask, each question with its benchmark's name. Raises DataError."""
        named = zip(self.settings.benchmarks, self.known_benchmarks, strict=True)
        return [(one.name, item) for one, known in named for item in benchmarks.questions(one, known)]

    def take(self, hf: Any, max_tokens: int) -> list[TaskResult]:
        """Let an opened model answer, and judge. `max_tokens`: of a batch, with the answers to come."""
        judged = [judge_answers(paper.task, paper.items, self._answers(hf, paper, max_tokens)) for paper in self.papers]
        named = zip(self.settings.benchmarks, self.known_benchmarks, strict=True)
        return judged + [benchmarks.take(one, known, hf, self.tokenizer, max_tokens) for one, known in named]

    def _answers(self, hf: Any, paper: _Paper, max_tokens: int) -> list[str | list[float] | Verdict]:
        from talaria.evaluation.greedy_answers import answer_all

        written = [place for place, item in enumerate(paper.items) if item.judge != "choice"]
        answers = answer_all(
            hf,
            [paper.prompts[place] for place in written],
            end=self.ends[0],
            ends=self.ends,
            pad=self.ends[-1],
            max_new_tokens=paper.task.max_new_tokens or self.settings.max_new_tokens,
            max_tokens=max_tokens,
        )
        found: dict[int, str | list[float] | Verdict] = {}
        for place, answer in zip(written, answers, strict=True):
            found[place] = str(self.tokenizer.decode(answer.ids))
        for place, item in enumerate(paper.items):
            if place not in found:
                found[place] = self._likelihoods(hf, paper.prompts[place].ids, item.choices, max_tokens)
        return [found[place] for place in range(len(paper.items))]

    def _likelihoods(self, hf: Any, prompt: NDArray[np.int32], choices: Sequence[str], max_tokens: int) -> list[float]:
        """Return the log-likelihood of each choice as the whole answer, its end token included."""
        encoded = [[*self.tokenizer.encode(choice, add_special_tokens=False), self.ends[0]] for choice in choices]
        longest = len(prompt) + max(map(len, encoded))
        at_once, found = max(1, max_tokens // longest), []
        for first in range(0, len(encoded), at_once):
            found += _log_likelihoods(hf, prompt, encoded[first : first + at_once], self.ends[-1])
        return found


def _log_likelihoods(hf: Any, prompt: NDArray[np.int32], answers: Sequence[Sequence[int]], pad: int) -> list[float]:
    import torch

    from talaria.evaluation.greedy_answers import pad_left

    rows = [np.concatenate([prompt, np.asarray(answer, np.int32)]) for answer in answers]
    ids, visible = (torch.from_numpy(array).to(hf.device) for array in pad_left(rows, pad))
    places = (visible.cumsum(1) - 1).clamp(min=0)
    kept = max(map(len, answers)) + 1
    with torch.no_grad():
        out = hf(input_ids=ids, attention_mask=visible, position_ids=places, use_cache=False, logits_to_keep=kept)
    chances: torch.Tensor = out.logits.float().log_softmax(-1)
    found = []
    for row, answer in enumerate(answers):
        count = len(answer)
        targets = torch.tensor(answer, device=hf.device)
        found.append(float(chances[row, -count - 1 : -1].gather(1, targets[:, None]).sum()))
    return found


def metric_items(result: TaskResult) -> MetricItems:
    """Return a task's result as the gate compares it."""
    rows = result.rows
    right = np.array([row.right for row in rows], dtype=np.bool_)
    values = np.array([row.verdict.score for row in rows], dtype=np.float64)
    return MetricItems([row.item.id for row in rows], values, np.ones(len(rows)), right, [row.item.tags for row in rows])


def table(results: dict[str, list[TaskResult]]) -> list[dict[str, Any]]:
    """Return a row a prompt: what was asked and expected, and answer, score and verdict of each model (tuned, base)."""
    lines = []
    for number, result in enumerate(results["tuned"]):
        for place, row in enumerate(result.rows):
            item = row.item
            line: dict[str, Any] = {"task": result.task.name, "prompt": item.messages[-1]["content"], "expected": item.expected}
            for model, all_results in results.items():
                judged = all_results[number].rows[place]
                line |= {model: judged.answer, f"{model}_score": judged.verdict.score, f"{model}_right": judged.right}
                line |= {f"{model}_why": judged.verdict.why, f"{model}_failed": judged.verdict.failed}
            line |= {"judge": item.judge, "tags": item.tags, "item": item.id, "messages": item.messages}
            lines.append(line)
    return lines
