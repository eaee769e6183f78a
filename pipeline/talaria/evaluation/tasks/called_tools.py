"""Tool calls as models write them into their answers.

`<tool_call>{"name": ..., "arguments": {...}}</tool_call>` (Hermes, Qwen), or an answer that is such an object or a list of them
(Llama). A server that takes calls out of the text gives them back as `as_text` writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_TAGGED = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def called_tools(answer: str) -> list[dict[str, Any]] | None:
    """Return the calls in an answer as {"name", "arguments"}; None where one is not readable."""
    tagged = _TAGGED.findall(answer)
    if tagged:
        calls = [_parsed(text) for text in tagged]
    elif answer.lstrip()[:1] in ("{", "["):
        value = _parsed(answer)
        calls = value if isinstance(value, list) else [value]
    else:
        return []
    read = [_call(call) for call in calls]
    return None if any(call is None for call in read) else [call for call in read if call is not None]


def as_text(message: Mapping[str, Any]) -> str:
    """Return a server's answer (OpenAI's message) as text, its tool calls as a model writes them."""
    calls: Sequence[Mapping[str, Any]] = message.get("tool_calls") or []
    parts = [message.get("content") or ""]
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments") or {}
        written = {"name": function["name"], "arguments": _parsed(arguments) if isinstance(arguments, str) else arguments}
        parts.append(f"<tool_call>\n{json.dumps(written, ensure_ascii=False)}\n</tool_call>")
    return "\n".join(part for part in parts if part)


def _call(value: Any) -> dict[str, Any] | None:
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    arguments = _parsed(arguments) if isinstance(arguments, str) else arguments
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
