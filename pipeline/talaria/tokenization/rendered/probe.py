"""What a chat template does, found by rendering conversations of ours."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.tokenization.chatml import END, is_chatml
from talaria.tokenization.comparison.reloaded import open_saved
from talaria.tokenization.rendered.chat_template import ChatTemplate, TemplateError
from talaria.tokenization.tokenizer_folder import template_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer as HuggingFaceTokenizer

_NO_PARAMETERS = {"type": "object", "properties": {}}
_TOOL = {"type": "function", "function": {"name": "probe_tool", "description": "A probe.", "parameters": _NO_PARAMETERS}}
_CALL = {"id": "probe0001", "type": "function", "function": {"name": "probe_tool", "arguments": {}}}
_ASKED: list[dict[str, Any]] = [{"role": "user", "content": "probe question"}]
_THOUGHT: list[dict[str, Any]] = [
    *_ASKED,
    {"role": "assistant", "content": "probe answer", "reasoning_content": "probe thought", "thinking": "probe thought"},
]
_CALLED: list[dict[str, Any]] = [
    *_ASKED,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "probe result", "name": "probe_tool", "tool_call_id": "probe0001"},
]


@dataclass(frozen=True)
class Probed:
    """What a template does, seen on conversations of ours."""

    prompts: Mapping[str, str]
    """What it writes to ask for an answer after a message of this role."""
    begins_with: str
    """What it writes before a conversation that begins with a question: BOS, a default system prompt, a date."""
    renders_reasoning: bool
    """Of the last answer at least."""


def probe(template: ChatTemplate) -> Probed:
    """Raises DataError where the template does not even render a question and its answer."""
    try:
        prompts = {"user": template.prompt_after(_ASKED)}
        begins_with = _begins_with(template)
        answered = template.text(_THOUGHT)
    except TemplateError as error:
        raise DataError(f"{template.where}: its chat template renders no plain question and answer ({error}).") from error
    with contextlib.suppress(TemplateError):  # it knows no tools; a row that has some is refused by name
        prompts["tool"] = template.prompt_after(_CALLED, [_TOOL])
    return Probed(prompts, begins_with, _THOUGHT[1]["reasoning_content"] in answered)


def _begins_with(template: ChatTemplate) -> str:
    """What stands before the first question's header; that is what the loop writes before the text of a later one."""
    begins_with, _, _ = template.text(_ASKED).partition(_ASKED[0]["content"])
    later = {"role": "user", "content": "probe another"}
    try:
        rendered = template.render([*_ASKED, _THOUGHT[1], later])
    except TemplateError:  # takes one question only
        return begins_with
    header = next((rendered.text[region.start :] for region in rendered.regions if region.message == 2), "")
    return begins_with.removesuffix(header.partition(later["content"])[0])


def answer_ends(folder: Path, tokenizer: HuggingFaceTokenizer) -> list[str]:
    """The tokens that end an answer, or a call of a tool, under the folder's chat template (without one: ChatML).

    None where the template ends an answer with no token of its own. Raises DataError where transformers cannot use it.
    """
    source = template_of(folder)
    if source is None or is_chatml(source):
        return [END]
    variables = open_saved(folder, source).special_tokens_map
    template = ChatTemplate(source, variables, datetime.date.today(), str(folder))
    tokens = sorted((token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len, reverse=True)
    found: dict[str, None] = {}
    for messages in (_THOUGHT, _CALLED[:2]):
        try:
            rendered = template.render(messages)
        except TemplateError:  # knows no reasoning or no tools
            continue
        answer = next((rendered.text[start:stop].rstrip() for number, start, stop in rendered.regions if number == 1), "")
        found.update(dict.fromkeys(token for token in tokens if answer.endswith(token)))
    return list(found)
