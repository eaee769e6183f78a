"""Task files: one JSON object a line, with a prompt and what its answer is judged by.

{"prompt": "3 + 4 = ?", "expected": "7", "tags": ["addition"]}
{"messages": [...], "tools": [...], "expected": {"name": "add", "arguments": {"a": 3}}, "judge": "tool_call"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from talaria.common.errors import DataError
from talaria.common.files import digest, file_digest
from talaria.common.printable import require_characters
from talaria.config.evaluation_settings import TaskSettings, Verdicts
from talaria.config.folder import config_folder
from talaria.data.conversation.drop_reasons import Unusable
from talaria.data.conversation.tool_calls import calls_text, tools_text
from talaria.evaluation.tasks.numbers_in_text import as_float

FIELDS = ("prompt", "messages", "tools", "expected", "choices", "judge", "tags", "id")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ANY = ("function", "rate")
"""Judges for which `expected` may be anything, or absent."""


@dataclass(frozen=True)
class TaskItem:
    """One prompt."""

    id: str
    """A digest of what is asked and how it is judged, behind the line's own id if it has one."""
    messages: list[dict[str, Any]]
    """As the messages parquet has them: role, content, and tool_calls as JSON text of a list."""
    tools: str | None
    """JSON text of a list of tools, or None."""
    judge: str
    expected: Any
    choices: list[str]
    """Answers between which the model chooses by likelihood (judge: choice)."""
    tags: list[str]
    line: Mapping[str, Any]
    """The whole object, for functions of users' own."""

    @property
    def alternatives(self) -> list[Any]:
        """`expected` as a list: any of these is right."""
        return self.expected if isinstance(self.expected, list) else [self.expected]


def task_path(task: TaskSettings) -> Path:
    """Return the task's file: the path as it is, or else in the configuration folder. Raises DataError where neither exists."""
    for path in (task.file, config_folder() / task.file):
        if path.is_file():
            return path
    raise DataError(f"{task.file}: there is no such file for task {task.name} (evaluate.tasks), nor in {config_folder()}.")


def task_digest(task: TaskSettings) -> str:
    """Return the sha256 of the task's file."""
    return file_digest(task_path(task))


def load_items(task: TaskSettings) -> list[TaskItem]:
    """Return the items of a task's file. Raises DataError that names file and line where one cannot be used, or none is there."""
    path = task_path(task)
    items = list(_items(path, task))
    if not items:
        raise DataError(f"{path}: holds no prompt for task {task.name}.")
    return items


def _items(path: Path, task: TaskSettings) -> Iterator[TaskItem]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the task {task.name} ({error}).") from None
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            require_characters(line)
            yield _item(line, task)
        except (ValueError, Unusable, RecursionError) as error:
            raise DataError(f"{path}, line {number}: {str(error).rstrip('.')}.") from None


def _item(line: Any, task: TaskSettings) -> TaskItem:
    if not isinstance(line, dict):
        raise ValueError(f'a prompt is a JSON object like {{"prompt": ..., "expected": ...}}, not {type(line).__name__}')
    judge = line.get("judge", task.judge)
    if judge not in get_args(Verdicts):
        raise ValueError(f"knows no judge {judge!r}; there are {', '.join(get_args(Verdicts))}")
    TaskSettings.model_validate(task.model_dump() | {"judge": judge})  # whether the task has what this judge needs
    unknown = [name for name in line if name not in FIELDS]
    if unknown and judge != "function":
        raise ValueError(f"has the unknown field {unknown[0]!r}; there are {', '.join(FIELDS)}")
    messages, tools = _messages(line), tools_text(line.get("tools"))
    tags = line.get("tags", [])
    if not isinstance(tags, list) or not all(isinstance(tag, str) and tag for tag in tags):
        raise ValueError("tags is a list of texts")
    choices = _choices(line, judge)
    _check_expected(judge, line.get("expected"), "expected" in line, choices)
    if "id" in line and not (isinstance(line["id"], str) and line["id"]):
        raise ValueError("id is a text")
    settings = task.key_fields()
    asked = digest([line, {name: settings[name] for name in settings if name not in ("name", "file")}])
    name = f"{line['id']}-{asked[:16]}" if "id" in line else asked[:16]
    return TaskItem(name, messages, tools, judge, line.get("expected"), choices, tags, line)


def _messages(line: Mapping[str, Any]) -> list[dict[str, Any]]:
    if ("prompt" in line) == ("messages" in line):
        raise ValueError("gives either prompt or messages")
    if "prompt" in line:
        if not isinstance(line["prompt"], str) or not line["prompt"]:
            raise ValueError("prompt is a text")
        return [{"role": "user", "content": line["prompt"]}]
    found = line["messages"]
    if not isinstance(found, list) or not found:
        raise ValueError("messages is a list of objects with role and content")
    messages = [_message(message, place) for place, message in enumerate(found)]
    if messages[-1]["role"] == "assistant":
        raise ValueError("messages ends with an answer; the model is asked for the next one, so end with the user or a tool")
    return messages


def _message(message: Any, place: int) -> dict[str, Any]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        raise ValueError(f"message {place} is an object whose role is one of {', '.join(_ROLES)}")
    calls = calls_text(message.get("tool_calls"))
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and calls):
        raise ValueError(f"message {place} has no text in content")
    return {**message, "content": content or "", **({"tool_calls": calls} if calls else {})}


def _choices(line: Mapping[str, Any], judge: str) -> list[str]:
    choices = line.get("choices")
    if judge != "choice":
        if choices is not None:
            raise ValueError(f"choices belong to judge choice, not {judge}")
        return []
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) and one for one in choices):
        raise ValueError("choices is a list of two texts or more")
    if len(set(choices)) < len(choices):
        raise ValueError("two choices are equal")
    return choices


def _check_expected(judge: str, expected: Any, given: bool, choices: list[str]) -> None:
    if judge in _ANY:
        return
    if not given:
        raise ValueError(f"judge {judge} needs expected")
    listed = expected if isinstance(expected, list) else [expected]
    if judge == "tool_call":
        if not all(_is_call(call) for call in listed):
            raise ValueError('expected is {"name": ..., "arguments": {...}}, or a list of these')
    elif judge == "json_schema":
        _check_schema(expected)
    elif judge == "choice":
        if expected not in choices:
            raise ValueError(f"expected {expected!r} is none of the choices")
    elif judge == "number":
        if not listed or any(isinstance(one, bool) or as_float(one) is None for one in listed):
            raise ValueError(f"expected is a number, not {expected!r}")
    elif not listed or not all(isinstance(one, str) and one for one in listed):
        raise ValueError(f"expected is a text or a list of them, not {expected!r}")
    elif judge == "regex":
        _check_patterns(listed)


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and call.keys() == {"name", "arguments"} and isinstance(call["arguments"], dict)


def _check_patterns(patterns: list[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"expected {pattern!r} is no regular expression ({error})") from None


def _check_schema(schema: Any) -> None:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for

    if not isinstance(schema, dict):
        raise ValueError("expected is a JSON schema, an object")
    try:
        validator_for(schema).check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"expected is no JSON schema ({error.message})") from None
