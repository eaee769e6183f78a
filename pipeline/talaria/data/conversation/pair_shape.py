"""A question and its answer in columns of their own, as messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from talaria.data import json_text
from talaria.data.conversation.content import ASSISTANT, Message, Notes
from talaria.data.conversation.drop_reasons import MISSING_VALUE, NOT_A_LIST, NOT_TEXT, Unusable, kind_of
from talaria.data.conversation.tool_calls import calls_text

_NO_REASONING = {"", "on", "off", "yes", "no", "true", "false", "none", "null"}
"""What such a column holds where it only says whether there is reasoning."""


@dataclass(frozen=True)
class PairShape:
    """A question and its answer in columns of their own."""

    name: str
    question: str
    answer: str
    context: str | None = None
    """Column whose text follows the question after a line break, where it is not blank."""
    history: str | None = None
    """Column with earlier [question, answer] pairs."""
    calls: bool = False
    """Whether the answer is calls of tools, not text."""


PAIRS = (
    PairShape("alpaca", "instruction", "output", "input", "history"),
    PairShape("dolly", "instruction", "response", "context"),
    PairShape("prompt", "prompt", "completion"),
    PairShape("prompt", "prompt", "response"),
    PairShape("question", "question", "answer"),
)


def text_pair(row: Mapping[str, Any], pair: PairShape, reasoning: Iterable[str], notes: Notes) -> list[Message]:
    """The messages of a question and its answer that are texts, with what stands beside them. Raises Unusable."""
    question, answer = row[pair.question], row[pair.answer]
    for name, text in ((pair.question, question), *(() if pair.calls else ((pair.answer, answer),))):
        if not isinstance(text, str):
            raise Unusable(NOT_TEXT, f"{name!r} is {kind_of(text)}, not text")
    context = row.get(pair.context) if pair.context else None
    if not isinstance(context, str | None):
        raise Unusable(NOT_TEXT, f"{pair.context!r} is {kind_of(context)}, not text")
    if context and context.strip():
        question = f"{question}\n{context}"
    history = (row.get(pair.history) if pair.history else None) or []
    if not isinstance(history, list) or not all(_is_pair(earlier) for earlier in history):
        raise Unusable(NOT_A_LIST, f"{pair.history!r} should be a list of pairs of texts")
    notes.mapped.add(f"{pair.question} and {pair.answer} to messages")
    texts = [*(text for earlier in history for text in earlier), question]
    asked: list[Message] = [{"role": ("user", ASSISTANT)[number % 2], "content": text} for number, text in enumerate(texts)]
    return [*asked, answer_of(row, pair, reasoning, notes)]


def answer_of(row: Mapping[str, Any], pair: PairShape, reasoning: Iterable[str], notes: Notes) -> Message:
    """The answer, with the first reasoning that one of the columns `reasoning` has."""
    message: Message = {"role": ASSISTANT, "content": "" if pair.calls else row[pair.answer]}
    if pair.calls and (calls := calls_text(row[pair.answer])):
        message["tool_calls"] = calls
    elif pair.calls:
        raise Unusable(MISSING_VALUE, f"{pair.answer!r} has no call of a tool")
    for name in reasoning:
        if isinstance(row.get(name), str) and row[name].strip().lower() not in _NO_REASONING:
            notes.mapped.add(f"{name} column to reasoning_content")
            return message | {"reasoning_content": row[name]}
    return message


def is_json_list(text: str) -> bool:
    """Whether the text is the JSON of a list of objects, as a column that holds lists and texts is written."""
    if not text.lstrip().startswith("["):
        return False
    try:
        found = json_text.parse(text)
    except ValueError:
        return False
    return bool(found) and all(isinstance(one, dict) for one in found)


def _is_pair(earlier: Any) -> bool:
    return isinstance(earlier, list) and len(earlier) == 2 and all(isinstance(text, str) for text in earlier)
