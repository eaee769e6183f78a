"""Rows of the messages parquet as a chat template takes them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat
from talaria.tokenization.reasons import CONTROL_IN_TEXT, UNREADABLE
from talaria.tokenization.rendered.chat_template import BREAK, RESERVED

TOOL_CALLS, REASONING = "tool_calls", "reasoning_content"
_TEXTS = (pa.string(), pa.large_string())
_ESCAPE = r'\\[^"n]'
"""An escape in JSON text behind which a control token may hide, as `<\\/think>` does: any but a quote's and a line break's."""


class RowError(ValueError):
    """A conversation that cannot be encoded exactly: under which reason it is counted, and a sentence without the row's name."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class PromptError(DataError):
    """A conversation of which no prompt can be made. `sentence` says why, without the name of the model's folder."""

    def __init__(self, where: str, sentence: str) -> None:
        super().__init__(f"{where}: {sentence}")
        self.sentence = sentence


@dataclass(frozen=True)
class Conversation:
    messages: list[dict[str, Any]]
    """Without absent fields and loss switches; tool calls as objects."""
    tools: list[Any] | None
    supervised: list[bool]
    """Whether the loss counts the message."""


def beginning_of(tokens: Iterable[str]) -> str:
    """What all of these texts begin with."""
    return os.path.commonprefix(list(tokens))  # noqa: RUF071  # character by character is what we want


def any_of(tokens: Iterable[str]) -> str:
    """A pattern of these tokens, longest first, with what all begin with written once: the search for it is quick."""
    begins = beginning_of(tokens)
    longest_first = sorted((token.removeprefix(begins) for token in tokens), key=len, reverse=True)
    return f"{re.escape(begins)}(?:{'|'.join(map(re.escape, longest_first))})"


class ConversationReader:
    """Makes conversations of rows. Text that looks like one of `controls` gets a BREAK after its first character, so that it is
    none; where `controls_stay_text` is false the row is refused instead."""

    def __init__(self, controls: list[str], controls_stay_text: bool = True, keep_reasoning: bool = True) -> None:
        self._begins = beginning_of(controls)
        self._unusual = re.compile("|".join([f"[{RESERVED}]", *([any_of(controls)] if controls else [])]))
        self._unusual_as_json = f"{self._unusual.pattern}|{_ESCAPE}"
        self._in_escapes = any(re.search(r"[\"\n]", control) for control in controls)
        self._controls_stay_text, self._keep_reasoning = controls_stay_text, keep_reasoning
        self.json_list = lru_cache(4096)(self._json_list)
        """A list from its JSON text, None where it is empty. Equal texts share a list: the sandbox lets no template change it."""

    def read(self, messages: pa.Array, tools: pa.Array | None) -> Iterator[Conversation | RowError]:
        """Each row of list<struct<role, content, ...>>, with its tools (JSON text); a null row is an empty conversation."""
        offered = tools.to_pylist() if tools is not None else [None] * len(messages)
        looked_at = self._rows_to_look_at(messages)
        for row, (turns, text) in enumerate(zip(messages.to_pylist(), offered, strict=True)):
            try:
                yield self.conversation(turns or [], text, row in looked_at)
            except RowError as error:
                yield error

    def _rows_to_look_at(self, messages: pa.Array) -> set[int]:
        """The rows that may hold an unusual text: a search through whole columns is quicker than one through each text."""
        turns, of_row = messages.flatten(), pc.list_parent_indices(messages)
        found: set[int] = set()
        for field in turns.type:
            values = pc.struct_field(turns, field.name)
            if field.type not in _TEXTS or values.null_count == len(values):
                continue
            as_json = field.name == TOOL_CALLS
            if as_json and self._in_escapes:
                return set(range(len(messages)))
            unusual = pc.match_substring_regex(values, self._unusual_as_json if as_json else self._unusual.pattern)
            found.update(of_row.filter(unusual, null_selection_behavior="drop").to_pylist())
        return found

    def conversation(self, turns: list[dict[str, Any]], tools: str | None = None, look_at: bool = True) -> Conversation:
        """One row. Raises RowError where tools or tool calls are no JSON text of a list, or a message says nothing.

        `look_at`: false where no message holds an unusual text.
        """
        return Conversation(
            [self._message(turn, number, look_at) for number, turn in enumerate(turns)],
            self.json_list(tools, "the column tools") if tools else None,
            [chat.is_supervised(turn) for turn in turns],
        )

    def _message(self, turn: dict[str, Any], number: int, look_at: bool) -> dict[str, Any]:
        """A message as apply_chat_template hands it to the template: without what is null, tool calls as objects."""
        found = {name: value for name, value in turn.items() if value is not None and name not in chat.SWITCHES}
        if REASONING in found and not (found[REASONING] and self._keep_reasoning):
            del found[REASONING]
        if look_at:
            texts = [(name, value) for name, value in found.items() if name != TOOL_CALLS and isinstance(value, str)]
            found |= {name: self._text(value) for name, value in texts}
        if REASONING in found:
            found["thinking"] = found[REASONING]  # gpt-oss's templates read this one
        if TOOL_CALLS in found:
            if calls := self.json_list(found[TOOL_CALLS], f"message {number}: {TOOL_CALLS}", look_at):
                found[TOOL_CALLS] = calls
                found.setdefault("content", "")  # OpenAI's null beside a call; Qwen3's template raises an error without it
            else:
                del found[TOOL_CALLS]
        if "role" not in found or "content" not in found:
            raise RowError(
                UNREADABLE, f"message {number} has no {'content' if 'role' in found else 'role'}; drop the row in convert"
            )
        return found

    def _json_list(self, text: str, where: str, look_at: bool = True) -> list[Any] | None:
        try:
            found = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise RowError(UNREADABLE, f"{where} should be the JSON text of a list, found {str(text)[:60]!r}")
        return (self._inside(found) if look_at else found) or None

    def _inside(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, dict):
            return {self._text(name): self._inside(item) for name, item in value.items()}
        return [self._inside(item) for item in value] if isinstance(value, list) else value

    def _text(self, text: str) -> str:
        if self._begins and text.isascii() and self._begins not in text:
            return text
        return self._unusual.sub(self._broken, text) if self._unusual.search(text) else text

    def _broken(self, found: re.Match[str]) -> str:
        token = found.group()
        if token in RESERVED:
            raise RowError(UNREADABLE, f"its text holds the noncharacter U+{ord(token):04X}; take it out in convert")
        if not self._controls_stay_text:
            raise RowError(
                CONTROL_IN_TEXT, f"its text holds {token}, which this tokenizer cannot keep text; take it out in convert"
            )
        return token[0] + BREAK + token[1:]
