"""Conversations with tools as glaive's function-calling data has them, in English and Chinese, generated from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("reasoning_content", pa.string()),
        ("tool_calls", pa.string()),
        ("name", pa.string()),
        ("tool_call_id", pa.string()),
    ]
)
TOOLS = ["get_weather", "get_route", "convert_money", "查天气"]
WORDS: dict[str, dict[str, Any]] = {
    "en": {
        "system": "You are a helpful assistant with access to functions.",
        "ask": ["What is the weather in {}?", "I need a route to {}, please.", "Convert 250 EUR for my trip to {}."],
        "places": ["Oslo", "New York", "São Paulo", "Kraków"],
        "answer": "Here is what I found for {}: {}.",
        "think": "The user asks about {}. I should call a function.",
        "chat": [("Thanks!", "You are welcome. Anything else?"), ("Can you order a pizza?", "I'm sorry, I can't do that.")],
        "describe": "Get information about a place",
    },
    "zh": {
        "system": "你是一个可以调用函数的助手。",
        "ask": ["{}今天的天气怎么样?", "请帮我规划去{}的路线。", "我要去{}旅行,请换算250欧元。"],
        "places": ["北京", "上海", "西雅图", "東京"],
        "answer": "以下是{}的结果:{}。",
        "think": "用户在问{}。我应该调用函数。",
        "chat": [("谢谢!", "不客气,还需要别的吗?"), ("你能订披萨吗?", "抱歉,我做不到。")],
        "describe": "查询一个地点的信息",
    },
}


def tool_rows(count: int, seed: int = 0, reasoning: bool = False, parallel: bool = True) -> list[dict[str, Any]]:
    """Rows of {messages, tools}: calls of one or two tools, their answers, later turns, and rows with tools and no call.

    `reasoning`: some answers have reasoning_content. `parallel`: a message may call two tools (Llama 3 takes one).
    """
    draw = random.Random(seed)
    return [_row(draw, draw.choice(sorted(WORDS)), reasoning, parallel) for _ in range(count)]


def _row(draw: random.Random, language: str, reasoning: bool, parallel: bool) -> dict[str, Any]:
    words = WORDS[language]
    tools = [_tool(draw, name, words["describe"]) for name in draw.sample(TOOLS, 2)]
    messages: list[dict[str, Any]] = [{"role": "system", "content": words["system"]}] if draw.random() < 0.7 else []
    for turn in range(draw.randint(1, 3)):
        place = draw.choice(words["places"])
        messages.append({"role": "user", "content": draw.choice(words["ask"]).format(place)})
        if turn == 0 or draw.random() < 0.5:
            messages += _called(draw, words, tools, place, reasoning, parallel)
        if draw.random() < 0.4:
            asked, answered = draw.choice(words["chat"])
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    if messages[-1]["role"] == "user":
        messages.append({"role": "assistant", "content": words["answer"].format("?", "-")})
    return {"messages": messages, "tools": tools}


def _called(
    draw: random.Random, words: dict[str, Any], tools: list[Any], place: str, reasoning: bool, parallel: bool
) -> list[dict[str, Any]]:
    called = draw.sample(tools, 2 if parallel and draw.random() < 0.3 else 1)
    calls = [
        {
            "id": f"call{draw.randrange(10**5):05d}",
            "type": "function",
            "function": {
                "name": tool["function"]["name"],
                "arguments": {"place": place, "days": draw.randint(1, 9), "exact": True},
            },
        }
        for tool in called
    ]
    asks: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": calls}
    if draw.random() < 0.3:
        asks = {"role": "assistant", "tool_calls": calls}  # content null
    found = [json.dumps({"place": place, "value": draw.randint(0, 99), "说明": "晴"}, ensure_ascii=False) for _ in calls]
    told = [
        {"role": "tool", "name": call["function"]["name"], "tool_call_id": call["id"], "content": text}
        for call, text in zip(calls, found, strict=True)
    ]
    says: dict[str, Any] = {"role": "assistant", "content": words["answer"].format(place, draw.randint(0, 99))}
    if reasoning:
        asks["reasoning_content"] = words["think"].format(place)
        says["reasoning_content"] = words["think"].format(place) + "\n\n1 + 1 = 2"
    return [asks, *told, says]


def _tool(draw: random.Random, name: str, description: str) -> dict[str, Any]:
    properties = {
        "place": {"type": "string", "description": description},
        "days": {"type": "integer", "minimum": draw.randint(0, 3)},
        "exact": {"type": "boolean"},
    }
    parameters = {"type": "object", "properties": properties, "required": ["place"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """As `talaria convert` writes them: tool calls and tools as JSON text."""
    messages = [
        [
            {**message, "tool_calls": json.dumps(message["tool_calls"], ensure_ascii=False) if "tool_calls" in message else None}
            for message in row["messages"]
        ]
        for row in rows
    ]
    tools = [json.dumps(row["tools"], ensure_ascii=False) if row["tools"] else None for row in rows]
    table = pa.table({"messages": pa.array(messages, pa.list_(MESSAGE)), "tools": pa.array(tools, pa.string())})
    pq.write_table(table, path)
    return path
