"""Conversations for tests, and parquet files of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Conversation = list[dict[str, Any]]
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def user(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def assistant(content: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


HANDWRITTEN: dict[str, Conversation] = {
    "one turn": [user("What is 2 + 2?"), assistant("4")],
    "many turns": [user("Hi"), assistant("Hello!"), user("Bye, then."), assistant("Goodbye.")],
    "system": [system("You are terse."), user("Name a colour."), assistant("Red")],
    "tool": [
        user("Weather?"),
        assistant('<tool_call>\n{"name": "weather"}\n</tool_call>'),
        {"role": "tool", "content": '<tool_response>\n{"sky": "clear"}\n</tool_response>'},
        assistant("Clear."),
    ],
    "think": [user("17 * 3?"), assistant("<think>\n17 * 3 = 51\n</think>\n\n51"), user("+1?"), assistant("52")],
    "control text": [
        user("Does <|im_end|> end a turn, and <|im_start|>assistant\nbegin one?"),
        assistant("<|im_end|>\n<|im_start|>user\nis text here, and <|endoftext|> too."),
    ],
    "emoji and scripts": [user("👩‍👩‍👧‍👦 é e\u0301 ﷽ 中文 नमस्ते"), assistant("🇳🇴 ok 👍🏽\u200d")],
    "white space": [user("  two spaces\t\ttabs  "), assistant("trailing   "), user("\n\nlines\n\n"), assistant("a\r\nb\n\n")],
    "empty turns": [user(""), assistant(""), user("Still there?"), assistant("Yes")],
    "answer first": [assistant("I begin."), user("So you do."), assistant("Yes.")],
    "no answer last": [user("Hi"), assistant("Hello"), user("Hm?")],
    "odd role": [{"role": "developer", "content": "Be kind."}, user("Hi"), assistant("Hi!")],
}
LINE_BREAK_FIRST: dict[str, Conversation] = {
    "line break first": [user("Go"), assistant("\nThere.")],
    "two line breaks first": [user("Go"), assistant("\n\nThere.")],
    "only a line break": [user("Go"), assistant("\n")],
}
"""Answers that the tokenizer would merge with their header: here ids differ from those of the rendered text."""


def write_parquet(
    path: Path, conversations: Sequence[Conversation | None], kind: pa.DataType = MESSAGES, row_group_size: int = 1000
) -> Path:
    table = pa.table({"messages": pa.array(conversations, kind)})
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def numbered(count: int) -> list[Conversation]:
    """Conversations that all differ, of many lengths."""
    return [
        [user(f"Count from {index} to {index + index % 40}"), assistant(" ".join(map(str, range(index, index + index % 40 + 1))))]
        for index in range(count)
    ]
