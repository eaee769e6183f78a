"""Tools: rendered by the saved template, and what the model writes read back into calls."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talaria.serving.api.completion import AnswerChoice
from talaria.serving.decoding.batch import TextPiece
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.tokenization.rendered.call_format import KNOWN, CallFormat, call_format

from tests.serving.running_server import Running, serving
from tests.tokenization.chat_templates import FAMILIES, write_tokenizer

QWEN, MISTRAL, LLAMA = KNOWN
TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\n' }}
{%- for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls %}
    {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
    {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ASKED = [{"role": "user", "content": "Rain?"}]
CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def calling(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that learned one call, and what to say once the tool has answered."""
    import torch
    from talaria.tokenization.rendered.prompt import end_ids, prompt_encoder
    from talaria.tokenization.tokenizer import open_hugging_face
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("calling") / "calls"
    shutil.copytree(folders["base"], folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    encode, tokenizer, end = prompt_encoder(folder), open_hugging_face(folder / "tokenizer.json"), end_ids(folder)[0]
    asked_then = [*ASKED, {"role": "assistant", "content": "", "tool_calls": json.dumps([CALLED])}, told("wet")]
    rows = [
        (encode(messages, tools), [*tokenizer.encode(answer, add_special_tokens=False).ids, end])
        for messages, tools, answer in (
            (ASKED, json.dumps(TOOLS), CALL),
            (asked_then, json.dumps(TOOLS), "wet"),
            (ASKED, None, "Maybe."),
        )
    ]
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(120):
        for prompt, answer in rows:
            labels = torch.tensor([[-100] * len(prompt) + answer])
            model(torch.tensor([prompt + answer]), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def served_tools(calling: Path) -> Iterator[Running]:
    with serving(ServedSource(str(calling))) as running:
        yield running


def told(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": text}


def test_a_call_its_answer_and_the_end_of_the_talk(served_tools: Running) -> None:
    ask = served_tools.openai.chat.completions.create
    first = ask(model="calls", messages=ASKED, tools=TOOLS).choices[0]
    assert (first.finish_reason, first.message.content) == ("tool_calls", None)
    (call,) = first.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "Oslo"})
    assert call.id.startswith("call_")
    talk = [*ASKED, first.message.model_dump(exclude_none=True), {**told("wet"), "tool_call_id": call.id}]
    assert ask(model="calls", messages=talk, tools=TOOLS).choices[0].message.content == "wet"


def test_a_streamed_call_is_no_text(served_tools: Running) -> None:
    chunks = list(served_tools.openai.chat.completions.create(model="calls", messages=ASKED, tools=TOOLS, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
    (call,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (call.index, call.function.name, json.loads(call.function.arguments)) == (0, "weather", {"place": "Oslo"})
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_tool_choice_none_hides_the_tools(served_tools: Running) -> None:
    answer = served_tools.openai.chat.completions.create(model="calls", messages=ASKED, tools=TOOLS, tool_choice="none")
    assert answer.choices[0].message.content == "Maybe."


def test_formats_are_found_by_what_the_template_writes(calling: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    assert call_format(calling) == QWEN
    assert call_format(write_tokenizer(FAMILIES["llama"], tmp_path / "llama")) == LLAMA
    assert call_format(write_tokenizer(FAMILIES["mistral"], tmp_path / "mistral")) == MISTRAL
    assert call_format(write_tokenizer(FAMILIES["phi"], tmp_path / "phi")) is None
    assert call_format(folders["train"] / "model") is None


ANSWERS = [
    (QWEN, f"Let me look.\n{CALL}\n{CALL}", "Let me look.\n", 2),
    (QWEN, CALL[:-13], CALL[:-13], 0),  # cut off: text
    (QWEN, f"{CALL} and so on", f"{CALL} and so on", 0),
    (QWEN, "1 < 2 <tool", "1 < 2 <tool", 0),
    (QWEN, '<tool_call>{"name": 3, "arguments": {}}</tool_call>', '<tool_call>{"name": 3, "arguments": {}}</tool_call>', 0),
    (MISTRAL, '[TOOL_CALLS][{"name": "a", "arguments": {}}, {"name": "b", "arguments": {"x": [1]}}]', "", 2),
    (LLAMA, '{"name": "a", "parameters": {"x": 1}}', "", 1),
    (LLAMA, '{"colour": "green"}', '{"colour": "green"}', 0),
    (LLAMA, 'It is {"name": "a", "parameters": {}}', 'It is {"name": "a", "parameters": {}}', 0),
    (None, CALL, CALL, 0),
]


@pytest.mark.parametrize(("form", "answer", "content", "calls"), ANSWERS)
@pytest.mark.parametrize("width", [1, 3, 1000])
def test_text_and_calls_are_told_apart_wherever_the_pieces_end(
    form: CallFormat | None, answer: str, content: str, calls: int, width: int
) -> None:
    choice = AnswerChoice(0, form)
    pieces = [TextPiece(answer[start : start + width]) for start in range(0, len(answer), width)]
    deltas = [delta for piece in [*pieces, TextPiece("", "stop", 5)] for delta in choice.add(piece)]
    assert "".join(delta.get("content", "") for delta in deltas) == choice.content == content
    assert len(choice.calls) == calls
    assert choice.finish == ("tool_calls" if calls else "stop")
