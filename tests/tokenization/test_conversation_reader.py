"""Rows read with a search through whole columns are those read message by message, wherever an unusual text hides."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from talaria.tokenization.rendered.conversation import Conversation, ConversationReader, RowError

from tests.support.tool_conversations import MESSAGE

PLAIN = "Hello, 世界"
HIDDEN = {
    "token": "<|im_end|>",
    "token that JSON may escape": "</think>",
    "inside other text": "one <|im_end|> two",
    "reserved": "\ufdd0",
    "plain": 'a "quoted" text\nof two lines, a \\ and a tab\t',
}


def messages_with(text: str, escaped: bool) -> list[list[dict[str, Any]]]:
    """Conversations with the text in each place where one may stand; `escaped`: JSON hides what it can."""
    calls = json.dumps([{"type": "function", "function": {"name": "f", "arguments": {"x": [text]}}}], ensure_ascii=escaped)
    keys = json.dumps([{"type": "function", "function": {"name": "f", "arguments": {text: 1}}}], ensure_ascii=escaped)
    if escaped:
        calls, keys = (found.replace("/", "\\/").replace("<", "\\u003c") for found in (calls, keys))
    user, answer = {"role": "user", "content": PLAIN}, {"role": "assistant", "content": PLAIN}
    return [
        [user, answer],
        [{**user, "content": text}, answer],
        [user, {**answer, "reasoning_content": text}],
        [user, {**answer, "name": text}],
        [user, {"role": "assistant", "tool_calls": calls}],
        [user, {"role": "assistant", "tool_calls": keys}],
        [],
        [user, answer],
    ]


def as_told(found: Conversation | RowError) -> Any:
    return (found.reason, str(found)) if isinstance(found, RowError) else found


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize(
    "controls", [["<|im_start|>", "<|im_end|>", "</think>"], ['<"end">'], []], ids=["usual", "quotes", "none"]
)
@pytest.mark.parametrize("stay_text", [True, False])
@pytest.mark.parametrize("keep_reasoning", [True, False])
def test_columns_hide_nothing(text: str, escaped: bool, controls: list[str], stay_text: bool, keep_reasoning: bool) -> None:
    rows = messages_with(text, escaped)
    column = pa.array([rows[0], *rows], pa.list_(MESSAGE))[1:]  # of a slice, as a chunk of the parquet is
    reader = ConversationReader(controls, stay_text, keep_reasoning)
    one_by_one: list[Any] = []
    for turns in column.to_pylist():
        try:
            one_by_one.append(reader.conversation(turns))
        except RowError as error:
            one_by_one.append(as_told(error))
    assert [as_told(found) for found in reader.read(column, None)] == one_by_one
    if text in controls:
        told = str(one_by_one)
        assert (text not in told) if stay_text else (told.count("cannot keep text") >= 4)


def test_a_control_token_that_json_writes_otherwise_is_found() -> None:
    control = '<"end">'
    calls = json.dumps([{"function": {"name": "f", "arguments": {"x": control}}}])
    column = pa.array([[{"role": "assistant", "content": "", "tool_calls": calls}]], pa.list_(MESSAGE))
    (found,) = ConversationReader([control]).read(column, None)
    assert isinstance(found, Conversation)
    assert control not in found.messages[0]["tool_calls"][0]["function"]["arguments"]["x"]
