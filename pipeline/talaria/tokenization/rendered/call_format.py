"""How a chat template writes tool calls into an answer, so that a model's answer can be read back into calls."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from talaria.tokenization.chatml import is_chatml
from talaria.tokenization.comparison.reloaded import open_saved
from talaria.tokenization.rendered.chat_template import ChatTemplate, TemplateError
from talaria.tokenization.rendered.probe import answer_ends
from talaria.tokenization.tokenizer import open_hugging_face
from talaria.tokenization.tokenizer_folder import template_of


class ToolCall(NamedTuple):
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class CallFormat:
    """Calls as JSON objects in the text of an answer."""

    opens: str
    """What stands before a call; nothing where the answer is the call."""
    closes: str
    """What stands behind it."""
    listed: bool
    """Whether all calls stand in one JSON list."""
    arguments: str
    """Under which name an object has the call's arguments."""

    def read(self, text: str) -> tuple[str, list[ToolCall]] | None:
        """Return the text before the calls, and the calls; None where there are none, or anything is malformed."""
        before, opening, rest = text.partition(self.opens) if self.opens else ("", "", text)
        if self.opens and not opening:
            return None
        try:
            calls = [self._call(found) for found in self._objects(rest.strip())]
        except (ValueError, RecursionError):
            return None
        return (before.strip(), calls) if calls else None

    def may_begin(self, text: str) -> bool:
        """Whether an answer that has this text so far, and no call yet, is one call where nothing stands before it."""
        return not self.opens and text.lstrip().startswith("{")

    def _objects(self, text: str) -> Iterator[Any]:
        """Yield the JSON objects of `text`, which begins behind the first `opens`. Raises ValueError."""
        while True:
            value, end = json.JSONDecoder().raw_decode(text)
            yield from value if self.listed and isinstance(value, list) else [value]
            rest = text[end:].strip()
            if not rest.startswith(self.closes):
                raise ValueError("not closed")
            rest = rest.removeprefix(self.closes).strip()
            if not rest:
                return
            if not self.opens or not rest.startswith(self.opens):
                raise ValueError("more than calls")
            text = rest.removeprefix(self.opens).strip()

    def _call(self, found: Any) -> ToolCall:
        if not isinstance(found, Mapping) or found.keys() - {"id"} != {"name", self.arguments}:
            raise ValueError("not a call")
        name, arguments = found["name"], found[self.arguments]
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("not a call")
        return ToolCall(name, arguments)


KNOWN = (
    CallFormat("<tool_call>", "</tool_call>", listed=False, arguments="arguments"),  # Qwen, Hermes
    CallFormat("[TOOL_CALLS]", "", listed=True, arguments="arguments"),  # Mistral
    CallFormat("", "", listed=False, arguments="parameters"),  # Llama 3
)
_TOOL = {"type": "function", "function": {"name": "probe_tool", "parameters": {"type": "object", "properties": {}}}}
_PROBE = ToolCall("probe_tool", {"text": 'a "b" \\ </c>\n', "list": [1, {"deep": None}], "flag": True})
_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "probe question"}]


def call_format(folder: Path) -> CallFormat | None:
    """The format in which the saved template writes calls; None where it writes none, or in another than these.

    A format counts only if it reads a call back from what the template makes of it, arguments and all.
    Raises DataError where the template cannot be used.
    """
    source = template_of(folder)
    if source is None or is_chatml(source):
        return None
    variables = open_saved(folder, source).special_tokens_map
    template = ChatTemplate(source, variables, datetime.date.today(), str(folder))
    call = {"id": "probe0001", "type": "function", "function": {"name": _PROBE.name, "arguments": dict(_PROBE.arguments)}}
    try:
        prompt = template.text(_ASKED, [_TOOL], add_generation_prompt=True)
        whole = template.text([*_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}], [_TOOL])
    except TemplateError:
        return None
    answer = whole.removeprefix(prompt).rstrip()
    for end in answer_ends(folder, open_hugging_face(folder / "tokenizer.json")):
        answer = answer.removesuffix(end)
    found = (known for known in KNOWN if (read := known.read(answer)) is not None and read[1] == [_PROBE])
    return next(found, None) if whole.startswith(prompt) else None
