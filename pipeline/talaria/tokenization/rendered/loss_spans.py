"""Which characters of a rendered conversation the loss counts: what the model itself must produce.

An answer's region is the text that the template wrote for it. What the template writes to ask for an answer, the generation
prompt, begins the region and belongs to the prompt; the rest is the model's, with the token that ends it:

    <|im_start|>assistant\\n   <think>\\n...\\n</think>\\n\\nIt is 3 degrees.<|im_end|>   \\n
    prompt                   supervised                                           supervised with tokenize.supervise_newline

Where a template says itself what is generated ({% generation %}), that counts instead. Where it gives an answer no region, the
answer is what stands between the prompt of the messages before it and the conversation that ends with it, if both are
prefixes of the whole; else the mask would be a guess, and the row is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from talaria.tokenization import chatml as chat
from talaria.tokenization.reasons import ANSWER_CHANGED, INEXACT, NOT_RENDERED, REASONING_LEFT_OUT, UNREADABLE
from talaria.tokenization.rendered.chat_template import ChatTemplate, Region, Rendered, TemplateError
from talaria.tokenization.rendered.conversation import REASONING, TOOL_CALLS, Conversation, RowError

_REASONING_ENDS = re.compile(r"\s*(</[^<>]+>|\[/[A-Z]+\])\s*")
_THINK_END = "</think>"


class LossSpan(NamedTuple):
    """Supervised text [start, stop) of a message."""

    message: int
    start: int
    stop: int


@dataclass(frozen=True)
class SpanRule:
    """How a template's answers are cut into prompt and supervised text."""

    template: ChatTemplate
    prompts: Mapping[str, str]
    """What the template writes to ask for an answer after a message of role user (or any other) and after one of role tool."""
    ends: tuple[str, ...]
    """Tokens of their own, one of which must end an answer: without it the model would never stop."""
    supervise_newline: bool = True
    train_reasoning: bool = True

    def spans(self, conversation: Conversation, rendered: Rendered, counts: Counter[str]) -> list[LossSpan]:
        """The supervised spans, in order; `counts` grows by what the template changed of the answers.

        Raises RowError where a span is not exact, or something of the conversation is not in the text.
        """
        found: list[LossSpan] = []
        for number, own in enumerate(regions_of(conversation, rendered, counts)):
            if conversation.supervised[number]:
                found += self._of_answer(conversation, number, own, rendered)
        return found

    def _of_answer(self, conversation: Conversation, number: int, own: list[Region], rendered: Rendered) -> list[LossSpan]:
        if rendered.generated:
            spans = [
                LossSpan(number, *span)
                for span in rendered.generated
                if own and own[0].start <= span[0] and span[1] <= own[-1].stop
            ]
            if not spans:
                raise RowError(INEXACT, f"message {number}: the chat template marks nothing of this answer as generated")
        else:
            spans = [
                self._after_prompt(conversation, own, rendered.text) if own else self._by_prefixes(conversation, number, rendered)
            ]
        spans[-1] = self._ended(spans[-1], rendered.text)
        if not self.train_reasoning:
            start = reasoning_end(conversation.messages[number], number, rendered.text, spans[0])
            spans = [span._replace(start=max(span.start, start)) for span in spans if span.stop > start]
        return spans

    def _after_prompt(self, conversation: Conversation, own: list[Region], text: str) -> LossSpan:
        """An answer's region without the generation prompt that begins it."""
        number, start, stop = own[0]
        asked_by = conversation.messages[number - 1]["role"] if number else "user"
        prompt = self.prompts.get(asked_by, self.prompts["user"])
        if len(own) > 1 or not text.startswith(prompt, start):
            raise RowError(
                INEXACT, f"message {number}: the chat template asks for an answer with {prompt!r} and writes this one otherwise"
            )
        return LossSpan(number, start + len(prompt), stop)

    def _by_prefixes(self, conversation: Conversation, number: int, rendered: Rendered) -> LossSpan:
        """From the conversation cut before and after the answer."""
        try:
            before = self.template.text(conversation.messages[:number], conversation.tools, add_generation_prompt=True)
            after = self.template.text(conversation.messages[: number + 1], conversation.tools)
        except TemplateError:
            before = after = ""
        if not (len(before) < len(after) and rendered.text.startswith(before) and rendered.text.startswith(after)):
            raise RowError(INEXACT, f"message {number}: the chat template gives no exact mask for this answer")
        return LossSpan(number, len(before), len(after))

    def _ended(self, span: LossSpan, text: str) -> LossSpan:
        """Up to the token that ends the answer, and the white space after it where that counts."""
        said = text[span.start : span.stop].rstrip()
        if not said.endswith(self.ends):
            raise RowError(
                INEXACT,
                f"message {span.message}: the chat template ends this answer with no token of its own; a model would not stop",
            )
        return span if self.supervise_newline else span._replace(stop=span.start + len(said))


def reasoning_end(message: Mapping[str, Any], number: int, text: str, span: LossSpan) -> int:
    """Where the answer goes on after its reasoning, with the tag that closes it; the span's start where it has none.

    Raises RowError where no closing tag follows.
    """
    reasoning = message.get(REASONING, "").strip()
    inline = not reasoning and _THINK_END in (message.get("content") or "")
    at = text.find(_THINK_END if inline else reasoning, span.start, span.stop)
    if at < 0 or not (reasoning or inline):
        return span.start
    found = _REASONING_ENDS.match(text, at if inline else at + len(reasoning), span.stop)
    if found is None:
        raise RowError(INEXACT, f"message {number}: the chat template closes its reasoning with no tag; set tokenize.reasoning")
    return found.end()


def regions_of(conversation: Conversation, rendered: Rendered, counts: Counter[str]) -> list[list[Region]]:
    """The regions of each message; `counts` grows by what the template changed of the answers.

    Raises RowError where the template left out what a message says or calls.
    """
    regions: list[list[Region]] = [[] for _ in conversation.messages]
    for region in rendered.regions:
        regions[region.message].append(region)
    for number, message in enumerate(conversation.messages):
        _check_rendered(message, number, rendered.text, regions[number], counts)
    return regions


def check_tools(conversation: Conversation, text: str) -> None:
    """That the tools on offer are in the text, beside their calls: a template may know none, or write them elsewhere.

    Raises RowError with the first that is not.
    """
    if not conversation.tools:
        return
    called = [name for number, message in enumerate(conversation.messages) for name in _called(message, number)]
    for tool in conversation.tools:
        name = _name(tool, "a tool")
        if text.count(name) <= called.count(name):
            raise RowError(NOT_RENDERED, f"the chat template does not render its tool {name}")


def _check_rendered(message: Mapping[str, Any], number: int, text: str, own: list[Region], counts: Counter[str]) -> None:
    """That the template wrote what the message says: a template may know no tools, no role `tool`, or leave reasoning out."""
    start, stop = (own[0].start, own[-1].stop) if own else (0, len(text))
    if not own and _text_of(message) not in text:
        raise RowError(NOT_RENDERED, f"message {number}: the chat template leaves out what role {message['role']} says")
    if message["role"] != chat.ASSISTANT:
        return
    if TOOL_CALLS in message:
        for name, times in Counter(_called(message, number)).items():
            if text.count(name, start, stop) < times:
                raise RowError(NOT_RENDERED, f"message {number}: the chat template does not render its call of {name}")
    if text.find(_text_of(message), start, stop) < 0:
        counts[ANSWER_CHANGED] += 1
    if REASONING in message and text.find(message[REASONING].strip(), start, stop) < 0:
        counts[REASONING_LEFT_OUT] += 1


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    return content.strip() if isinstance(content, str) else ""


def _called(message: Mapping[str, Any], number: int) -> list[str]:
    return [_name(call, f"message {number}: a tool call") for call in message.get(TOOL_CALLS, ())]


def _name(function: Any, what: str) -> str:
    """The name of a tool or a call, OpenAI's form or the bare function."""
    inner = function.get("function", function) if isinstance(function, dict) else None
    name = inner.get("name") if isinstance(inner, dict) else None
    if not isinstance(name, str) or not name:
        raise RowError(UNREADABLE, f"{what} should be {{type: function, function: {{name, ...}}}}, found {str(function)[:60]}")
    return name
