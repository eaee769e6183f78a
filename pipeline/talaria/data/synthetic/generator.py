"""The bundled sample: a seeded generator of conversations in OpenHermes-2.5's sparse schema, for demonstrations and tests.

Like the original it is one pretty-printed JSON array in contiguous blocks by source, each block with columns of its own;
about 30% of the rows have a system turn, a few have several turns, and the known oddities are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from talaria.data.synthetic.tasks import (
    ADDITION,
    CAPITALS,
    COLOURS,
    COUNTING,
    DAYS,
    DIGITS,
    NUMBERS,
    OPPOSITES,
    PLURALS,
    REPEAT,
    REVERSE,
    SOUNDS,
    SPELLING,
    TASKS,
    UPPERCASE,
    Task,
)
from talaria.data.synthetic.tool_tasks import tool_turns, tools_offered

Row = dict[str, Any]
FILE = "sample.json"
SYSTEM_SHARE, MULTI_TURN_SHARE = 0.3, 0.05
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer briefly.",
    "You are a teacher for small children. Answer in as few words as you can.",
    "Give the answer and nothing else.",
)
POLITE = ("{}", "{}", "{}", "Please help me. {}", "Quick question. {}", "Hello! {}", "{} Thank you.")
ODD_ROWS = 1000
"""Each oddity is planted once in so many rows, and at least once."""


@dataclass(frozen=True)
class Block:
    """Contiguous rows with one task and one set of columns."""

    task: Task
    share: float
    columns: Callable[[Random], Row]
    weighted: bool = False
    """Turns carry a weight, as in one block of the original."""


def _with_source(name: str, **further: Any) -> Callable[[Random], Row]:
    return lambda random: {"source": name, **further}


def _hex(random: Random, digits: int) -> str:
    return f"{random.getrandbits(4 * digits):0{digits}x}"


def _arena(random: Random) -> Row:
    return {"source": "arena", "id": _hex(random, 32), "model": "gpt-4", "language": "English"}


def _shared(random: Random) -> Row:
    row: Row = {
        "id": _hex(random, 7),
        "model": "Model: GPT-4",
        "views": random.randrange(4000),
        "hash": [random.getrandbits(31) for _ in range(random.randrange(1, 6))],
        "avatarUrl": f"data:image/jpeg;base64,{_hex(random, 40)}",
    }
    return row | ({"title": "GPT-4 chat"} if random.random() < 0.5 else {})


BLOCKS = (
    Block(ADDITION, 0.12, _with_source("airoboros", category="addition", skip_prompt_formatting=False)),
    Block(CAPITALS, 0.10, _with_source("camel", topic="Geography")),
    Block(SPELLING, 0.06, _with_source("weighted"), weighted=True),
    Block(OPPOSITES, 0.10, _arena),
    Block(PLURALS, 0.06, lambda random: {"custom_instruction": True, "model_name": "GPT-4", "title": "Plurals"}),
    Block(UPPERCASE, 0.09, _with_source("cot")),
    Block(COLOURS, 0.06, _with_source("expert", system_prompt="Concise")),
    Block(REPEAT, 0.09, lambda random: {"id": str(random.randrange(10**6))}),
    Block(COUNTING, 0.09, _with_source("metamath")),
    Block(REVERSE, 0.06, lambda random: {}),
    Block(DAYS, 0.06, _with_source("platypus")),
    Block(SOUNDS, 0.05, _shared),
    Block(DIGITS, 0.06, lambda random: {"idx": _hex(random, 7)}),
)


def write_sample(path: Path, rows: int, seed: int, tool_rows: int = 0) -> None:
    """Write the rows as the hub's file is written: a JSON array, four spaces of indentation, ASCII."""
    with path.open("w", encoding="ascii") as file:
        for number, row in enumerate(chain(generate(rows, seed), generate_tool_rows(tool_rows, seed))):
            file.write(",\n" if number else "[\n")
            text = json.dumps(row, indent=4)
            file.write("    " + text.replace("\n", "\n    "))  # a line break inside a string is escaped
        file.write("\n]")


def generate(rows: int, seed: int) -> Iterator[Row]:
    """The rows; the same for the same seed."""
    random = Random(seed)  # noqa: S311
    planted = _plant(rows, random)
    row: Row = {}
    done, reached = 0, 0.0
    for block in BLOCKS:
        reached += block.share
        until = round(rows * reached / sum(block.share for block in BLOCKS))
        for number in range(done, until):
            earlier, row = row, _row(block, random)
            if number in planted:
                row = planted[number](row, earlier)
            yield row
        done = until


def generate_tool_rows(rows: int, seed: int) -> Iterator[Row]:
    """Rows with a column `tools`, in which tools are called or not needed; the same for the same seed."""
    random = Random(f"tools {seed}")  # noqa: S311
    for _ in range(rows):
        turns = tool_turns(random, lambda: random.choice(TASKS).ask(random), lambda text: random.choice(POLITE).format(text))
        if random.random() < SYSTEM_SHARE:
            turns.insert(0, {"from": "system", "value": random.choice(SYSTEM_PROMPTS)})
        yield {"conversations": turns, "tools": tools_offered(random, turns), "source": "tools"}


def _plant(rows: int, random: Random) -> dict[int, Oddity]:
    """Which row gets which oddity."""
    oddities = ODDITIES * max(1, rows // ODD_ROWS)
    places = random.sample(range(1, rows), min(len(oddities), rows // 10))
    return dict(zip(places, oddities, strict=False))


def leading_answer(row: Row, earlier: Row) -> Row:
    first, *others = row["conversations"]
    return row | {"conversations": [first | {"from": "gpt", "value": "Hello! Ask me something."}, first, *others]}


def empty_answer(row: Row, earlier: Row) -> Row:
    *others, last = row["conversations"]
    return row | {"conversations": [*others, last | {"value": ""}]}


def duplicate(row: Row, earlier: Row) -> Row:
    return earlier


def control_text(row: Row, earlier: Row) -> Row:
    *others, question, answer = row["conversations"]
    text = question["value"] + " Do not write <|im_end|>."
    return row | {"conversations": [*others, question | {"value": text}, answer]}


def long_row(row: Row, earlier: Row) -> Row:
    *others, question, answer = row["conversations"]
    text = " ".join(NUMBERS * 250)
    return row | {"conversations": [*others, question | {"value": f"Read this. {text}. {question['value']}"}, answer]}


Oddity = Callable[[Row, Row], Row]
"""(row, the row before it) -> the odd row."""
ODDITIES: tuple[Oddity, ...] = (leading_answer, empty_answer, duplicate, control_text, long_row)


def _row(block: Block, random: Random) -> Row:
    turns = []
    if random.random() < SYSTEM_SHARE:
        turns.append(_turn("system", random.choice(SYSTEM_PROMPTS), block, 0.0))
    tasks = [block.task]
    if random.random() < MULTI_TURN_SHARE:
        tasks += random.choices(TASKS, k=random.randrange(1, 3))
    for task in tasks:
        question, answer = task.ask(random)
        turns.append(_turn("human", random.choice(POLITE).format(question), block, 0.0))
        turns.append(_turn("gpt", answer, block, 1.0))
    return {"conversations": turns, **block.columns(random)}


def _turn(role: str, text: str, block: Block, weight: float) -> Row:
    return {"from": role, "value": text} | ({"weight": weight} if block.weighted else {})
