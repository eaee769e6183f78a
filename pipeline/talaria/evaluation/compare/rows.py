"""Rows of a comparison: a prompt, what was expected, and every model's answer with its verdict."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from talaria.common.errors import DataError
from talaria.config.evaluation_settings import Evaluate

Row = dict[str, Any]
"""task, item, tags, prompt, expected, answers: model -> {answer, score, right, why}."""
HELDOUT = "held-out"
_WORD = re.compile(r"\s+|\w+|[^\w\s]")


def ask(models: Mapping[str, Path], settings: Evaluate) -> list[Row]:
    """Let every model folder answer the tasks, each by its own chat template, and judge. Raises DataError without a task."""
    from talaria.evaluation.exam import CACHED, free
    from talaria.evaluation.greedy_answers import open_for_answers
    from talaria.evaluation.heldout_loss import best_device
    from talaria.evaluation.tasks.model_answers import TaskTests

    if not settings.tasks:
        raise DataError("there is no prompt to compare answers to; give --prompts FILE.jsonl, or a --config with evaluate.tasks.")
    settings = settings.model_copy(update={"benchmarks": []})  # most of their answers are likelihoods
    device, papers = best_device(), {name: TaskTests.of(settings, folder) for name, folder in models.items()}
    results = {}
    for name, folder in models.items():
        hf = open_for_answers(folder, device)
        results[name] = papers[name].take(hf, CACHED * settings.batch_tokens)
        free(hf)
    rows = []
    for number, task in enumerate(settings.tasks):
        judged = {name: one[number].rows for name, one in results.items()}
        for place, first in enumerate(next(iter(judged.values()))):
            answers = {
                name: _answer(lines[place].answer, lines[place].verdict.score, lines[place].right, lines[place].verdict.why)
                for name, lines in judged.items()
            }
            item = first.item
            asked = {"task": task.name, "item": item.id, "tags": item.tags, "prompt": item.messages[-1]["content"]}
            rows.append({**asked, "expected": item.expected, "answers": answers})
    return rows


def of_evaluation(folder: Path) -> list[Row]:
    """Return the answers of base and tuned that the output of evaluate holds: its tasks, and its held-out prompts."""
    from talaria.evaluation.stage import SAMPLES, TASK_TABLE

    rows = [_row(line, [name for name in ("base", "tuned") if name in line]) for line in _lines(folder / TASK_TABLE)]
    for line in _lines(folder / SAMPLES):
        made = {"task": HELDOUT, "item": f"row {line['row']}", "tags": [], "prompt": line["prompt"]}
        models = [name for name in ("base", "tuned") if line[name] is not None]
        answers = {name: _answer(line[name], float(line[f"{name}_match"]), line[f"{name}_match"], "") for name in models}
        rows.append({**made, "expected": line["reference"], "answers": answers})
    return rows


def differs(row: Row) -> bool:
    """Tell whether the models answered differently, or were judged so."""
    found = list(row["answers"].values())
    return any((one["answer"], one["right"]) != (found[0]["answer"], found[0]["right"]) for one in found[1:])


def totals(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return task -> model -> mean score."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, one in row["answers"].items():
            found.setdefault(row["task"], {}).setdefault(name, []).append(one["score"])
    return {task: {name: sum(scores) / len(scores) for name, scores in models.items()} for task, models in found.items()}


def marked(first: str, other: str) -> list[tuple[str, bool]]:
    """Return `other` in pieces, each with whether it differs from `first`, by words."""
    ours, theirs = _WORD.findall(other), _WORD.findall(first)
    pieces: list[tuple[str, bool]] = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        if text := "".join(ours[start:stop]):
            pieces.append((text, kind != "equal"))
    return pieces


def _row(line: Mapping[str, Any], models: Sequence[str]) -> Row:
    kept = {name: line[name] for name in ("task", "item", "tags", "prompt", "expected")}
    answers = {name: _answer(line[name], line[f"{name}_score"], line[f"{name}_right"], line[f"{name}_why"]) for name in models}
    return {**kept, "answers": answers}


def _answer(text: str | None, score: float, right: bool, why: str) -> dict[str, Any]:
    return {"answer": text if text is not None else "", "score": score, "right": right, "why": why}


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
