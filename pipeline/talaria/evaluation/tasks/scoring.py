"""Score a task: its items, an answer to each from whatever answers, and a verdict on each answer.

result = score_task(task, answer)           # answer(messages, tools) -> text; any model, server or function
result.score, result.by_tag, result.rows    # the mean, slices, and one row per prompt
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from talaria.common.errors import UserError
from talaria.config.evaluation_settings import BenchmarkSettings, TaskSettings
from talaria.evaluation.tasks.judge_model import MODEL_JUDGES, judge_all
from talaria.evaluation.tasks.task_file import TaskItem, load_items
from talaria.evaluation.tasks.verdicts import Verdict, by_likelihood, failure, judge_text

Answer = Callable[[Sequence[Mapping[str, Any]], str | None], str]
"""(messages, tools) -> the answer's text; both as `TaskItem` has them. What it raises fails the item."""
Likelihoods = Callable[[Sequence[Mapping[str, Any]], str | None, Sequence[str]], list[float]]
"""(messages, tools, choices) -> log-likelihood of each choice as the answer."""


@dataclass(frozen=True)
class Row:
    """One prompt of a task, what was answered, and the verdict."""

    item: TaskItem
    answer: str | None
    """None for a choice by likelihood, and where there was no answer."""
    verdict: Verdict
    right: bool


@dataclass(frozen=True)
class TaskResult:
    task: TaskSettings | BenchmarkSettings
    rows: list[Row]

    @property
    def score(self) -> float:
        """The mean over all items; a failed one counts as 0."""
        return _mean(self.rows)

    @property
    def failed(self) -> int:
        """Items whose answer or verdict could not be had."""
        return sum(row.verdict.failed for row in self.rows)

    @property
    def by_tag(self) -> dict[str, float]:
        """Tag -> mean score of the items that carry it."""
        tags = sorted({tag for row in self.rows for tag in row.item.tags})
        return {tag: _mean([row for row in self.rows if tag in row.item.tags]) for tag in tags}

    def summary(self) -> dict[str, Any]:
        """The task's numbers, as the report has them."""
        return {"score": self.score, "right": sum(row.right for row in self.rows), "failed": self.failed, "tags": self.by_tag}


def score_task(
    task: TaskSettings,
    answer: Answer,
    likelihoods: Likelihoods | None = None,
    *,
    items: Sequence[TaskItem] | None = None,
    at_a_time: int = 1,
) -> TaskResult:
    """Ask for an answer to every item and judge them.

    `items`: absent, those of the task's file; a sample of them otherwise. `at_a_time`: answers asked for at once, by threads.
    Raises UserError where an item is a choice by likelihood and there are no `likelihoods`, before anything is asked.
    """
    items = list(load_items(task) if items is None else items)
    if likelihoods is None and any(item.judge == "choice" for item in items):
        raise UserError(f"task {task.name}: judge choice needs likelihoods, which this model does not give; leave the task out.")

    def ask(item: TaskItem) -> str | list[float] | Verdict:
        try:
            if item.judge == "choice":
                assert likelihoods is not None
                return likelihoods(item.messages, item.tools, item.choices)
            return answer(item.messages, item.tools)
        except Exception as error:  # whatever a client raises: no answer is a wrong answer
            return failure(f"no answer: {type(error).__name__}: {error}"[:200])

    with ThreadPoolExecutor(max_workers=at_a_time) as pool:
        given = list(pool.map(ask, items))
    return judge_answers(task, items, given)


def judge_answers(task: TaskSettings, items: Sequence[TaskItem], given: Sequence[str | list[float] | Verdict]) -> TaskResult:
    """Judge what was answered: a text, the likelihoods of an item's choices, or the Verdict that there is no answer."""
    verdicts: list[Verdict | None] = [_own_rule(task, item, answer) for item, answer in zip(items, given, strict=True)]
    asked = [place for place, verdict in enumerate(verdicts) if verdict is None]
    if asked:
        texts = [(items[place], str(given[place])) for place in asked]
        for place, found in zip(asked, judge_all(task, texts), strict=True):
            verdicts[place] = found
    rows = []
    for item, answer, verdict in zip(items, given, verdicts, strict=True):
        assert verdict is not None  # its own rule or the judge gave one
        right = not verdict.failed and verdict.score >= task.pass_score
        rows.append(Row(item, answer if isinstance(answer, str) else None, verdict, right))
    return TaskResult(task, rows)


def _own_rule(task: TaskSettings, item: TaskItem, given: str | list[float] | Verdict) -> Verdict | None:
    """The verdict, or None where a model has to judge."""
    if isinstance(given, Verdict):
        return given
    if isinstance(given, list):
        return by_likelihood(item, given)
    return None if item.judge in MODEL_JUDGES else judge_text(task, item, given)


def _mean(rows: Sequence[Row]) -> float:
    return sum(row.verdict.score for row in rows) / len(rows) if rows else 0.0
