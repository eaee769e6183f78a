"""Verdicts on answers that need no other model: text, numbers, JSON, tool calls, similarity, and functions of users' own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from talaria.common.user_code import load_function
from talaria.config.evaluation_settings import TaskSettings
from talaria.evaluation.tasks.called_tools import called_tools
from talaria.evaluation.tasks.numbers_in_text import as_float, last_number
from talaria.evaluation.tasks.task_file import TaskItem

FUNCTION = "evaluate.tasks.function"
_FENCED = re.compile(r"\A```\w*\n(.*)\n```\Z", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """What was found of one answer."""

    score: float
    """0 to 1."""
    why: str = ""
    """In a few words, what is wrong; empty where nothing is to be said."""
    failed: bool = False
    """The answer or its verdict could not be had: it counts as wrong, and is counted by itself, too."""


def failure(why: str) -> Verdict:
    return Verdict(0.0, why, failed=True)


def judge_text(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    """Judge an answer by the item's own rule (all but choice, rate and pairwise)."""
    if item.judge == "function":
        assert task.function is not None  # settings and task file have been checked
        return _by_function(task.function, item, answer)
    return _RULES[item.judge](task, item, answer)


def _fold(task: TaskSettings, text: str) -> str:
    text = text.strip()
    return text.casefold() if task.ignore_case else text


def _exact(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    right = _fold(task, answer) in {_fold(task, one) for one in item.alternatives}
    return Verdict(float(right), "" if right else "differs from what is expected")


def _contains(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    right = any(_fold(task, one) in _fold(task, answer) for one in item.alternatives)
    return Verdict(float(right), "" if right else "does not contain what is expected")


def _regex(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    flags = re.IGNORECASE if task.ignore_case else 0
    right = any(re.search(one, answer, flags) for one in item.alternatives)
    return Verdict(float(right), "" if right else "does not match")


def _number(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    found = last_number(answer)
    if found is None:
        return Verdict(0.0, "holds no number")
    wanted = [number for one in item.alternatives if (number := as_float(one)) is not None]
    right = any(math.isclose(found, one, rel_tol=1e-9, abs_tol=task.tolerance) for one in wanted)
    return Verdict(float(right), "" if right else f"says {found:g}")


def _json_schema(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    text = answer.strip()
    fenced = _FENCED.match(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return Verdict(0.0, "is no JSON")
    error = best_match(validator_for(item.expected)(item.expected).iter_errors(value))
    return Verdict(1.0) if error is None else Verdict(0.0, f"{error.json_path}: {error.message}"[:200])


def _tool_call(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    calls = called_tools(answer)
    if calls is None:
        return Verdict(0.0, "has a tool call that cannot be read")
    if len(calls) != len(item.alternatives):
        return Verdict(0.0, f"calls {len(calls)} tools, not {len(item.alternatives)}")
    for call, wanted in zip(calls, item.alternatives, strict=True):
        if call["name"] != wanted["name"]:
            return Verdict(0.0, f"calls {call['name']}, not {wanted['name']}"[:200])
        if not _equal(call["arguments"], wanted["arguments"]):
            return Verdict(0.0, f"calls {call['name']} with other arguments"[:200])
    return Verdict(1.0)


def _equal(found: Any, wanted: Any) -> bool:
    """JSON's equality: 1 is 1.0, and true is not 1."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_equal(found[name], wanted[name]) for name in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    return bool(found == wanted)


def _similarity(task: TaskSettings, item: TaskItem, answer: str) -> Verdict:
    from rapidfuzz.distance import Indel

    given = _fold(task, answer)
    return Verdict(max(Indel.normalized_similarity(given, _fold(task, one)) for one in item.alternatives))


def _by_function(dotted: str, item: TaskItem, answer: str) -> Verdict:
    """A function's own error fails its item, not the evaluation: a model may answer what nobody thought of."""
    function = load_function(FUNCTION, dotted)
    try:
        found = function(dict(item.line), answer)
    except Exception as error:  # whatever code of users' own raises
        return failure(f"{dotted} raised {type(error).__name__}: {error}"[:200])
    number = as_float(found) if isinstance(found, bool | int | float) else None
    if number is None or not 0 <= number <= 1:
        return failure(f"{dotted} returned {found!r}, it should return true, false or a number from 0 to 1"[:200])
    return Verdict(number)


def by_likelihood(item: TaskItem, likelihoods: list[float]) -> Verdict:
    """The most likely choice is the answer. likelihoods: log-likelihood of each choice, summed over its tokens."""
    best = max(range(len(likelihoods)), key=likelihoods.__getitem__)
    right = item.choices[best] == item.expected
    return Verdict(float(right), "" if right else f"prefers {item.choices[best]!r}"[:200])


_RULES: dict[str, Callable[[TaskSettings, TaskItem, str], Verdict]] = {
    "exact": _exact,
    "contains": _contains,
    "regex": _regex,
    "number": _number,
    "json_schema": _json_schema,
    "tool_call": _tool_call,
    "similarity": _similarity,
}
