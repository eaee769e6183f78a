"""Prompts byte for byte between training and engines that serve: the table of docs/publishing.md (`make test-wheel`)."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from talaria.base_model.random_init import OWN_TEMPLATE
from talaria.tokenization import chatml
from talaria.tokenization.rendered.chat_template import ChatTemplate

from tests.publishing.conftest import REPOSITORY
from tests.support import qwen_tokenizer

RENDERER = Path(__file__).with_name("render_prompts.py")
TALK = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": " Grüße, 世界 <b>&'\u2028"},
    {"role": "assistant", "content": "No.\n\n"},
    {"role": "user", "content": "Why?"},
]
PLAIN_TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
TOOL = {
    "type": "function",
    "function": {"name": "find", "description": "Größe < 3 & 'x'", "parameters": {"low": 1.0, "all": None}},
}


def call(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    made = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": arguments}}],
    }
    return [{"role": "user", "content": "Find it."}, made, {"role": "tool", "content": '{"found": 1}'}]


pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]


def cases() -> dict[str, tuple[str, list[dict[str, Any]], list[Any] | None]]:
    qwen = json.loads((qwen_tokenizer.tokenizer() / "tokenizer_config.json").read_text())["chat_template"]
    return {
        "ChatML, a conversation": (chatml.TEMPLATE, TALK, None),
        "Qwen3's, a conversation": (qwen, TALK, None),
        "Qwen3's, a tool in plain ASCII": (qwen, TALK, [PLAIN_TOOL]),
        "Qwen3's, a tool with `ö`, `<`, `'`, 1.0": (qwen, TALK, [TOOL]),
        "Qwen3's, a call with plain arguments": (qwen, call({"a": 1, "b": "x"}), [PLAIN_TOOL]),
        "Qwen3's, a call with `é` and `<`": (qwen, call({"b": "é", "a": "<"}), [PLAIN_TOOL]),
        "`make demo`'s, a call with plain arguments": (OWN_TEMPLATE.read_text(), call({"a": 1, "b": "x"}), [PLAIN_TOOL]),
        "`make demo`'s, a call with `é` and `<`": (OWN_TEMPLATE.read_text(), call({"b": "é", "a": "<"}), [PLAIN_TOOL]),
    }


def test_the_table_of_the_page_is_what_the_engines_render(former: Path, vllm: Path, tmp_path: Path) -> None:
    trained, told = [], []
    for template, messages, tools in cases().values():
        ours = ChatTemplate(template, {}, datetime.date(2026, 11, 27), "test")
        trained.append(ours.text(messages, tools, add_generation_prompt=True))
        told.append({"template": template, "given": {"messages": messages, "tools": tools, "add_generation_prompt": True}})
    assert trained[0] == chatml.render(TALK, add_generation_prompt=True)
    (tmp_path / "cases.json").write_text(json.dumps(told))
    command = [sys.executable, RENDERER, tmp_path / "cases.json", tmp_path / "out.json"]
    now = run(command, tmp_path, {"PYTHONPATH": str(vllm)})
    before = run(command, tmp_path, {"PYTHONPATH": str(former)})
    found = {name: now[name] for name in now if not name.startswith("jinja2")} | before
    lines = [f"| prompt | {' | '.join(found)} |"]
    lines += [f"| {case} | {' | '.join(word(found[name][n], trained[n]) for name in found)} |" for n, case in enumerate(cases())]
    print("\n".join(lines))
    page = (REPOSITORY / "docs" / "publishing.md").read_text(encoding="utf-8")
    assert [line for line in lines if line not in page] == []


def word(text: str, trained: str) -> str:
    return "equal" if text == trained else text if text.startswith("fails: ") else "differs"


def run(command: list[Any], folder: Path, environment: dict[str, str]) -> dict[str, list[str]]:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.json").read_text())
