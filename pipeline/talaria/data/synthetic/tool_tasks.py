"""Tools, and short conversations in which they are called: few enough that a model of half a million parameters learns them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from talaria.data.synthetic.tasks import CAPITALS

Turn = dict[str, str]
CALL_SHARE = 0.6
"""Conversations in which a tool is called; in the others tools are on offer, and the question needs none."""
CITIES = tuple(CAPITALS.answers.values())[:12]
SKIES = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy")


@dataclass(frozen=True)
class ToolTask:
    """A tool, questions that need it, and what is made of its result."""

    name: str
    description: str
    argument: str
    kind: str
    """JSON type of the argument."""
    wordings: tuple[str, ...]
    values: tuple[Any, ...]
    """Arguments; a wording has a place for one."""
    result: Callable[[Random, Any], dict[str, Any]]
    answer: str
    """With places for the argument and the result's fields."""

    @property
    def definition(self) -> dict[str, Any]:
        """As clients of OpenAI's API send it."""
        parameters = {"type": "object", "properties": {self.argument: {"type": self.kind}}, "required": [self.argument]}
        function = {"name": self.name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": function}


TOOLS = (
    ToolTask(
        "get_weather", "The weather in a city", "city", "string",
        (
            "What is the weather in {}?", "How is the weather in {}?", "Weather in {}, please.", "Tell me the weather in {}.",
            "What is the weather like in {}?",
        ),
        CITIES,
        lambda random, city: {"sky": random.choice(SKIES)},
        "It is {sky} in {city}.",
    ),
    ToolTask(
        "set_timer", "Starts a timer", "minutes", "integer",
        ("Set a timer for {} minutes.", "Start a timer of {} minutes.", "Wake me in {} minutes.", "{} minutes, please."),
        (5, 10, 15, 20, 30, 45, 60),
        lambda random, minutes: {"started": True},
        "The timer is set to {minutes} minutes.",
    ),
)  # fmt: skip


def tool_turns(random: Random, ask: Callable[[], tuple[str, str]], polite: Callable[[str], str]) -> list[Turn]:
    """Turns in ShareGPT's form. `ask` gives a question that needs no tool, with its answer; `polite` words a question."""
    if random.random() >= CALL_SHARE:
        question, answer = ask()
        return [{"from": "human", "value": polite(question)}, {"from": "gpt", "value": answer}]
    tool = random.choice(TOOLS)
    value = random.choice(tool.values)
    result = tool.result(random, value)
    call = {"name": tool.name, "arguments": {tool.argument: value}}
    return [
        {"from": "human", "value": polite(random.choice(tool.wordings).format(value))},
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": json.dumps(result)},
        {"from": "gpt", "value": tool.answer.format(**result, **{tool.argument: value})},
    ]


def tools_offered(random: Random, turns: list[Turn]) -> str:
    """JSON text of the tools on offer, one or two: any, and the one that is called."""
    called = {json.loads(turn["value"])["name"] for turn in turns if turn["from"] == "function_call"}
    offered = [tool for tool in TOOLS if tool.name in called]
    offered += random.sample([tool for tool in TOOLS if tool not in offered], random.randrange(0 if called else 1, 2))
    random.shuffle(offered)
    return json.dumps([tool.definition for tool in offered])
