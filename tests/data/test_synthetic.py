"""The bundled sample: OpenHermes-2.5's schema, its oddities, answers that can be learnt."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import defaultdict
from pathlib import Path

import pytest
from talaria.data.conversation.row_shape import RowShape
from talaria.data.readers.json_schema import DECLARED
from talaria.data.synthetic.generator import ODDITIES, generate, generate_tool_rows, write_sample


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for seed in (0, 0, 1):
        write_sample(tmp_path / "rows.json", 500, seed)
        digests.append(hashlib.sha256((tmp_path / "rows.json").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


def test_it_is_written_as_the_hubs_file_is(tmp_path: Path) -> None:
    write_sample(tmp_path / "rows.json", 300, 0)
    rows = list(generate(300, 0))
    assert (tmp_path / "rows.json").read_text() == json.dumps(rows, indent=4)


def test_rows_are_sparse_and_have_the_hubs_columns() -> None:
    rows = list(generate(3000, 0))
    assert {name for row in rows for name in row} == DECLARED.keys()
    fields = {field.name for field in DECLARED["conversations"].value_type}
    assert {name for row in rows for turn in row["conversations"] for name in turn} == fields
    assert {turn["from"] for row in rows for turn in row["conversations"]} == {"system", "human", "gpt"}
    with_system = sum(row["conversations"][0]["from"] == "system" for row in rows)
    assert 0.25 < with_system / len(rows) < 0.35
    assert 0 < sum(len(row["conversations"]) > 3 for row in rows) < 0.1 * len(rows)


def test_each_oddity_is_there() -> None:
    rows = list(generate(2000, 0))
    turns = [row["conversations"] for row in rows]
    assert sum(t[0]["from"] == "gpt" for t in turns) >= 2
    assert sum(t[-1]["value"] == "" for t in turns) >= 2
    assert sum(first == second for first, second in itertools.pairwise(rows)) >= 2
    assert sum("<|im_end|>" in json.dumps(t) for t in turns) >= 2
    assert sum(len(json.dumps(t)) > 10_000 for t in turns) >= 2
    assert len(ODDITIES) == 5


@pytest.mark.parametrize("rows", [1, 2, 9, 11, 137])
def test_any_number_of_rows_can_be_had(rows: int) -> None:
    assert len(list(generate(rows, 0))) == rows


def test_a_question_has_one_answer_and_most_conversations_differ() -> None:
    answers = defaultdict(set)
    seen = set()
    for row in generate(6000, 0):
        seen.add(json.dumps(row["conversations"]))
        turns = [turn for turn in row["conversations"] if turn["from"] != "system"]
        for question, answer in itertools.pairwise(turns):
            if question["from"] == "human" and answer["value"]:
                answers[question["value"]].add(answer["value"])
    assert all(len(found) == 1 for found in answers.values())
    assert len(seen) > 4000


def test_tools_are_offered_where_they_are_called_and_where_they_are_not(tmp_path: Path) -> None:
    rows = list(generate_tool_rows(200, 0))
    assert rows == list(generate_tool_rows(200, 0)) != list(generate_tool_rows(200, 1))
    called = 0
    for row in rows:
        read = RowShape().conversation(row)
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in json.loads(read.tools or "")}
        for message in read.messages:
            for call in json.loads(message.get("tool_calls") or "[]"):
                assert call["function"]["arguments"].keys() == offered[call["function"]["name"]]["properties"].keys()
                called += 1
    assert 80 < called < 160
    write_sample(tmp_path / "rows.json", 100, 0, tool_rows=20)
    assert json.loads((tmp_path / "rows.json").read_text()) == [*generate(100, 0), *generate_tool_rows(20, 0)]
