"""Answers in OpenAI's form: whole, and in chunks; text that is a tool call becomes one."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from talaria.serving.decoding.answer_text import beginning_of
from talaria.serving.decoding.batch import TextPiece
from talaria.tokenization.rendered.call_format import CallFormat, ToolCall

TOOL_CALLS = "tool_calls"


@dataclass
class AnswerChoice:
    """One answer of a request, as far as it has come."""

    index: int
    calls_in: CallFormat | None = None
    """How calls are written; None: no tools were on offer, so all is text."""
    content: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None
    tokens: int = 0
    _held: str = ""
    _is_calling: bool = False

    def add(self, piece: TextPiece) -> list[dict[str, Any]]:
        """Take a piece; returns the deltas that it makes."""
        self.tokens = max(self.tokens, piece.tokens)
        text = self._released(self._held + piece.text)
        deltas: list[dict[str, Any]] = []
        if piece.finish is not None:
            read = self.calls_in.read(self._held) if self.calls_in and self._held else None
            if read is None:
                text += self._held  # no call after all, or one that is malformed: it stays the text that it is
            else:
                self.calls = [as_openai(call, number) for number, call in enumerate(read[1])]
                deltas = [{TOOL_CALLS: self.calls}]
            self.finish, self._held = TOOL_CALLS if self.calls else piece.finish, ""
        self.content += text
        return [{"content": text}, *deltas] if text else deltas

    def whole(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message |= {
                "content": self.content or None,
                TOOL_CALLS: [{name: value for name, value in call.items() if name != "index"} for call in self.calls],
            }
        return {"index": self.index, "message": message, "logprobs": None, "finish_reason": self.finish}

    def _released(self, text: str) -> str:
        """What of `text` is no part of a call; the rest is held."""
        if self.calls_in is None:
            return text
        self._is_calling = self._is_calling or (not self.content and self.calls_in.may_begin(text))
        if self._is_calling:
            self._held = text
            return ""
        if not self.calls_in.opens:
            self._held = "" if self.content or text.strip() else text
            return "" if self._held else text
        before, opening, rest = text.partition(self.calls_in.opens)
        self._is_calling = bool(opening)
        held = len(opening + rest) if opening else beginning_of(self.calls_in.opens, before)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def as_openai(call: ToolCall, index: int) -> dict[str, Any]:
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"index": index, "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


@dataclass(frozen=True)
class Envelope:
    """What all objects of one response share."""

    model: str
    fingerprint: str
    """Which version answered."""
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def completion(self, choices: list[AnswerChoice]) -> dict[str, Any]:
        return self._object("chat.completion", [choice.whole() for choice in choices]) | {"usage": self.usage(choices)}

    def chunk(self, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._object("chat.completion.chunk", [choice])

    def last_chunk(self, choices: list[AnswerChoice]) -> dict[str, Any]:
        """The chunk of stream_options.include_usage, which has no choice."""
        return self._object("chat.completion.chunk", []) | {"usage": self.usage(choices)}

    def usage(self, choices: list[AnswerChoice]) -> dict[str, int]:
        answered = sum(choice.tokens for choice in choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": answered,
            "total_tokens": self.prompt_tokens + answered,
        }

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
