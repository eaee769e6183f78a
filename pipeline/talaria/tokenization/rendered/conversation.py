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

from talaria.common.errors import DataError
from talaria.tokenization import chatml as chat
from talaria.tokenization.reasons import CONTROL_IN_TEXT, UNREADABLE
from talaria.tokenization.rendered.chat_template import BREAK, RESERVED

TOOL_CALLS, REASONING = "tool_calls", "reasoning_content"


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
        self._controls_stay_text, self._keep_reasoning = controls_stay_text, keep_reasoning
        self.json_list = lru_cache(4096)(self._json_list)
        """A list from its JSON text, None where it is empty. Equal texts share a list: the sandbox lets no template change it."""

    def read(self, messages: pa.Array, tools: pa.Array | None) -> Iterator[Conversation | RowError]:
        """Each row of list<struct<role, content, ...>>, with its tools (JSON text); a null row is an empty conversation."""
        offered = tools.to_pylist() if tools is not None else [None] * len(messages)
        for turns, text in zip(messages.to_pylist(), offered, strict=True):
            try:
                yield self.conversation(turns or [], text)
            except RowError as error:
                yield error

    def conversation(self, turns: list[dict[str, Any]], tools: str | None = None) -> Conversation:
        """One row. Raises RowError where tools or tool calls are no JSON text of a list, or a message says nothing."""
        return Conversation(
            [self._message(turn, number) for number, turn in enumerate(turns)],
            self.json_list(tools, "the column tools") if tools else None,
            [chat.is_supervised(turn) for turn in turns],
        )

    def _message(self, turn: dict[str, Any], number: int) -> dict[str, Any]:
        """A message as apply_chat_template hands it to the template: without what is null, tool calls as objects."""
        found: dict[str, Any] = {}
        for name, value in turn.items():
            if value is None or name in chat.SWITCHES:
                continue
            if name == TOOL_CALLS:
                if calls := self.json_list(value, f"message {number}: {TOOL_CALLS}"):
                    found[TOOL_CALLS] = calls
            elif name == REASONING:
                if value and self._keep_reasoning:
                    found[REASONING] = found["thinking"] = self._text(value)  # gpt-oss's templates read the second
            else:
                found[name] = self._text(value) if isinstance(value, str) else value
        if TOOL_CALLS in found:
            found.setdefault("content", "")  # OpenAI's null beside a call; Qwen3's template raises an error without it
        if "role" not in found or "content" not in found:
            raise RowError(
                UNREADABLE, f"message {number} has no {'content' if 'role' in found else 'role'}; drop the row in convert"
            )
        return found

    def _json_list(self, text: str, where: str) -> list[Any] | None:
        try:
            found = json.loads(text)
        except (TypeError, ValueError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise RowError(UNREADABLE, f"{where} should be the JSON text of a list, found {str(text)[:60]!r}")
        return self._inside(found) or None

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
