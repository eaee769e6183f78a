"""Every shape in which people have conversations, through convert: each row by the shape it has, or told by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from talaria.common.errors import ConfigError, DataError
from talaria.config.data_settings import Convert
from talaria.config.load import override
from talaria.data.convert import convert

Row = dict[str, Any]
ASK, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
TURNS = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
CALL = {"name": "weather", "arguments": {"city": "Oslo", "day": 1}}
OPENAI_CALL = {"id": "c1", "type": "function", "function": CALL}
TOOL = {"name": "weather", "description": "Wetter, 天气", "parameters": {"type": "object", "properties": {}}}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(source: Path, **settings: Any) -> tuple[list[Row], dict[str, Any]]:
    output = source.with_name("out.parquet")
    facts = convert(source, output, Convert(**settings))
    return pq.read_table(output).to_pylist(), facts


def said(row: Row) -> list[Row]:
    """The row's messages without absent fields, calls as values."""
    messages = [{name: value for name, value in message.items() if value is not None} for message in row["messages"]]
    return [m | ({"tool_calls": json.loads(m["tool_calls"])} if "tool_calls" in m else {}) for m in messages]


SHAPES: list[tuple[str, Row, list[Row]]] = [
    ("messages", {"messages": [ASK, ANSWER]}, [ASK, ANSWER]),
    ("conversations", {"conversations": TURNS}, [ASK, ANSWER]),
    ("conversations", {"messages": None, "conversations": TURNS}, [ASK, ANSWER]),
    ("conversations", {"messages": [], "conversations": TURNS}, [ASK, ANSWER]),
    ("conversations", {"conversations": [ASK, ANSWER]}, [ASK, ANSWER]),
    ("conversations", {"conversations": [{"from": "user", "value": "2+2?"}, {"from": "assistant", "value": "4"}]}, [ASK, ANSWER]),
    ("messages", {"messages": TURNS}, [ASK, ANSWER]),
    ("messages", {"messages": json.dumps([ASK, ANSWER])}, [ASK, ANSWER]),
    ("conversations", {"conversations": [{"input": "2+2?", "output": "4"}] * 2}, [ASK, ANSWER] * 2),
    ("messages", {"messages": [{"input": "2+2?", "output": "4", "weight": 0}]}, [ASK, ANSWER | {"weight": 0.0}]),
    ("alpaca", {"instruction": "2+2?", "input": "", "output": "4"}, [ASK, ANSWER]),
    ("alpaca", {"instruction": "Add.", "input": "2, 2", "output": "4"}, [{"role": "user", "content": "Add.\n2, 2"}, ANSWER]),
    (
        "alpaca",
        {"instruction": "2+2?", "output": "4", "system": "Be brief.", "history": [["1+1?", "2"]]},
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
            ASK,
            ANSWER,
        ],
    ),
    ("dolly", {"instruction": "2+2?", "context": "Sums", "response": "4"}, [{"role": "user", "content": "2+2?\nSums"}, ANSWER]),
    ("prompt", {"prompt": "2+2?", "completion": "4"}, [ASK, ANSWER]),
    ("prompt", {"prompt": "2+2?", "response": "4"}, [ASK, ANSWER]),
    ("prompt", {"prompt": [ASK], "completion": [ANSWER]}, [ASK, ANSWER]),
    ("prompt", {"prompt": [ASK], "completion": "4"}, [ASK, ANSWER]),
    ("prompt", {"prompt": "2+2?", "completion": [ANSWER]}, [ASK, ANSWER]),
    ("prompt", {"prompt": [ASK], "completion": json.dumps([ANSWER])}, [ASK, ANSWER]),
    ("prompt", {"prompt": [ASK], "completion": "[4]"}, [ASK, ANSWER | {"content": "[4]"}]),
    ("prompt", {"prompt": [ASK, ANSWER, ASK], "completion": [ANSWER]}, [ASK, ANSWER | {"train": False}, ASK, ANSWER]),
    ("question", {"question": "2+2?", "answer": "4"}, [ASK, ANSWER]),
    ("question", {"question": "2+2?", "reasoning": "A sum.", "answer": "4"}, [ASK, ANSWER | {"reasoning_content": "A sum."}]),
    ("question", {"question": "2+2?", "reasoning": "on", "answer": "4"}, [ASK, ANSWER]),
]


@pytest.mark.parametrize(("shape", "row", "messages"), SHAPES)
def test_a_shape_becomes_messages(tmp_path: Path, shape: str, row: Row, messages: list[Row]) -> None:
    (ours,), facts = converted(lines(tmp_path / "a.jsonl", row))
    assert said(ours) == messages
    assert facts["shapes"] == {shape: 1}
    assert {name: value for name, value in ours.items() if name in row and name != "messages"} == {
        name: value for name, value in row.items() if name != "messages"
    }


def test_rows_of_all_shapes_go_by_their_own_in_one_file_and_over_files(tmp_path: Path) -> None:
    mixed = lines(tmp_path / "mixed.jsonl", *(row for _, row, _ in SHAPES))
    ours, facts = converted(mixed)
    assert [said(row) for row in ours] == [messages for _, _, messages in SHAPES]
    folder = tmp_path / "folder"
    folder.mkdir()
    for number, (_, row, _) in enumerate(SHAPES):
        lines(folder / f"{number:02}.jsonl", row)
    apart, apart_facts = converted(folder)
    assert [said(row) for row in apart] == [said(row) for row in ours]
    assert (
        apart_facts["shapes"]
        == facts["shapes"]
        == {"alpaca": 3, "conversations": 6, "dolly": 1, "messages": 4, "prompt": 8, "question": 3}
    )


def test_plain_conversations_have_only_role_and_content_whatever_stands_beside_them(tmp_path: Path) -> None:
    for row in ({"conversations": TURNS}, {"messages": [ASK, ANSWER]}, {"instruction": "2+2?", "output": "4"}):
        converted(lines(tmp_path / "a.jsonl", row | {"x": [1, "a"]}, row | {"x": {}}))
        kind = pq.read_schema(tmp_path / "out.parquet").field("messages").type.value_type
        assert [(field.name, field.type) for field in kind] == [("role", pa.string()), ("content", pa.string())]


TOOL_ROWS: list[tuple[Row, list[Row]]] = [
    (
        {"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]}]},
        [ASK, {"role": "assistant", "tool_calls": [OPENAI_CALL]}],
    ),
    (
        {
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [OPENAI_CALL | {"function": CALL | {"arguments": '{"city": "Oslo", "day": 1}'}}],
                },
            ]
        },
        [ASK, {"role": "assistant", "content": "", "tool_calls": [OPENAI_CALL]}],
    ),
    (
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
                {"role": "tool", "content": "3", "name": "weather", "tool_call_id": "c1"},
                ANSWER,
            ]
        },
        [
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": "3", "name": "weather", "tool_call_id": "c1"},
            ANSWER,
        ],
    ),
    (
        {
            "messages": [
                ASK,
                {"role": "assistant", "content": None, "function_call": CALL},
                {"role": "function", "name": "weather", "content": "3"},
            ]
        },
        [
            ASK,
            {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": "3", "name": "weather"},
        ],
    ),
    (
        {
            "conversations": [
                TURNS[0],
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "3"},
                TURNS[1],
            ]
        },
        [
            ASK,
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": "3"},
            ANSWER,
        ],
    ),
    (
        {
            "conversations": [
                TURNS[0],
                {"from": "gpt", "value": "<tool_call>x</tool_call>"},
                {"from": "tool", "value": "3"},
                TURNS[1],
            ]
        },
        [ASK, {"role": "assistant", "content": "<tool_call>x</tool_call>"}, {"role": "tool", "content": "3"}, ANSWER],
    ),
]


@pytest.mark.parametrize(("row", "messages"), TOOL_ROWS)
@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [{"type": "function", "function": TOOL}]])
def test_calls_and_tools_have_the_form_that_templates_take(tmp_path: Path, row: Row, messages: list[Row], tools: Any) -> None:
    (ours,), facts = converted(lines(tmp_path / "a.jsonl", {"tools": tools, **row}))
    assert said(ours) == messages
    assert json.loads(ours["tools"]) == [{"type": "function", "function": TOOL}]
    assert "天气" in ours["tools"]  # as apply_chat_template prints it, not as escapes
    assert facts["mapped"]["tools column"] == 1
    assert pq.read_schema(tmp_path / "out.parquet").field("tools").type == pa.string()


def test_tools_are_read_under_the_names_of_other_apis(tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {}}
    called = {"role": "assistant", "content": None, "function_call": CALL | {"arguments": json.dumps(CALL["arguments"])}}
    rows = [
        {"messages": [ASK, called], "functions": [TOOL], "tools": None},
        {"messages": [ASK, ANSWER], "functions": ["def f(): ..."], "tools": None},
        {"messages": [ASK, called], "functions": None, "tools": [{"name": "weather", "input_schema": schema}]},
    ]
    ours, facts = converted(lines(tmp_path / "a.jsonl", *rows))
    assert [json.loads(row["tools"])[0]["function"] if row["tools"] else None for row in ours] == [
        TOOL,
        None,
        {"name": "weather", "parameters": schema},
    ]
    assert facts["mapped"] == {"functions column to tools": 1, "tools column": 1}


def test_calls_and_reasoning_that_are_columns_of_their_own(tmp_path: Path) -> None:
    """As xLAM's function calling and medical-o1 have them."""
    row = {"query": "2+2?", "answers": json.dumps([CALL]), "Complex_CoT": "A sum."}
    fields = {"prompt": "query", "tool_calls": "answers", "reasoning_content": "Complex_CoT"}
    source = lines(tmp_path / "a.jsonl", row, row | {"answers": "[]"})
    with pytest.raises(DataError, match=r"row 1 \(counted from 0\): 'answers' has no call of a tool"):
        converted(source, fields=fields)
    (ours,), _ = converted(source, fields=fields, on_bad_row="drop")
    calls = [{"type": "function", "function": CALL}]
    assert said(ours) == [ASK, {"role": "assistant", "content": "", "tool_calls": calls, "reasoning_content": "A sum."}]
    turns = [ASK, {"role": "assistant", "content": "4", "Complex_CoT": "A sum.", "answers": [CALL]}]
    (ours,), _ = converted(lines(tmp_path / "b.jsonl", {"messages": turns}), fields=fields)
    assert said(ours) == [ASK, {"role": "assistant", "content": "4", "tool_calls": calls, "reasoning_content": "A sum."}]


NO_ROW: list[tuple[Row, str]] = [
    ({"conversations": [{"input": "2+2?", "output": None}]}, "turn 0 has no 'output'"),
    ({"instruction": "2+2?", "output": ["4", "four"]}, "output's turn 0 is text, not an object"),
    ({"conversations": ["2+2?", "4"]}, "row 0 .*: turn 0 is text, not an object like {'from': ..., 'value': ...}"),
    ({"conversations": [{"q": "2+2?", "a": "4"}]}, r"turn 0 has no 'from', but q, a \(convert\.fields can say"),
    (
        {"messages": [ASK, ANSWER | {"content": [{"type": "tool_use"}]}]},
        "row 0 .*: turn 1 holds a part of the type 'tool_use'; only text can be trained",
    ),
    (
        {"conversation": [ASK | {"toxic": False}]},
        r"found conversation; name the columns with convert\.fields \(convert\.fields\.messages",
    ),
]


@pytest.mark.parametrize(("row", "sentence"), NO_ROW)
@pytest.mark.parametrize("on_bad_row", ["error", "drop"])
def test_where_no_row_can_be_used_the_first_is_told(tmp_path: Path, row: Row, sentence: str, on_bad_row: str) -> None:
    with pytest.raises(DataError, match=sentence):
        converted(lines(tmp_path / "a.jsonl", *[row] * 3), on_bad_row=on_bad_row)


def test_arguments_keep_their_types_and_absent_ones_stay_absent_from_json_and_from_parquet(tmp_path: Path) -> None:
    calls = [[{"type": "function", "function": {"name": "f", "arguments": a}}] for a in ({"x": 1}, {"y": "noon"}, {})]
    rows = [{"messages": [ASK, {"role": "assistant", "content": "", "tool_calls": call}]} for call in calls]
    ours, _ = converted(lines(tmp_path / "a.jsonl", *rows))
    assert [said(row)[1]["tool_calls"] for row in ours] == calls
    pq.write_table(pa.Table.from_pylist(rows[:2]), tmp_path / "b.parquet")  # Arrow's structs have every field in every row
    theirs, _ = converted(tmp_path / "b.parquet")
    assert [said(row)[1]["tool_calls"] for row in theirs] == calls[:2]


def test_reasoning_developer_and_parts_of_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "2+"}, {"type": "text", "text": "2?"}]
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": parts},
            ANSWER | {"reasoning_content": "two and two"},
            ASK,
            ANSWER | {"thinking": "again"},
        ]
    }
    (ours,), facts = converted(lines(tmp_path / "a.jsonl", row))
    assert said(ours) == [
        {"role": "developer", "content": "Be brief."},
        ASK,
        ANSWER | {"reasoning_content": "two and two"},
        ASK,
        ANSWER | {"reasoning_content": "again"},
    ]
    assert facts["mapped"] == {"parts of text to one text": 1, "thinking to reasoning_content": 1}


def test_fields_that_only_a_later_file_has_are_read_from_it(tmp_path: Path) -> None:
    """pyarrow, which reads a folder by its first file's schema, drops them (findings/pyarrow_struct_fields.sh)."""
    folder = tmp_path / "folder"
    folder.mkdir()
    thought = ANSWER | {"reasoning_content": "two and two"}
    for name, answer in {"a": ANSWER, "b": thought, "c": ANSWER}.items():
        pq.write_table(pa.Table.from_pylist([{"messages": [ASK, answer]}]), folder / f"{name}.parquet")
    ours, _ = converted(folder)
    assert [said(row)[1] for row in ours] == [ANSWER, thought, ANSWER]


def test_the_fields_of_a_message_stand_in_one_order_whatever_the_source_has(tmp_path: Path) -> None:
    message = {
        "zeta": "mine", "step_loss_mask": 1, "weight": 1, "train": True, "tool_call_id": "c", "name": "n",
        "tool_calls": [CALL], "reasoning_content": "r", "content": "c", "role": "assistant",
    }  # fmt: skip
    _, facts = converted(lines(tmp_path / "a.jsonl", {"messages": [ASK, message]}))
    kind = pq.read_schema(tmp_path / "out.parquet").field("messages").type.value_type
    assert [field.name for field in kind] == [
        "role", "content", "reasoning_content", "tool_calls", "name", "tool_call_id", "train", "weight", "step_loss_mask", "zeta",
    ]  # fmt: skip
    assert facts["not_carried"] == {"zeta: kept in the messages, no template shows it": 1}


def test_what_a_sharegpt_turn_says_elsewhere_is_counted_by_name(tmp_path: Path) -> None:
    rows = [{"conversations": [TURNS[0], TURNS[1] | {"thoughts": "hm", "markdown": None, "text": ""}]}, {"conversations": TURNS}]
    _, facts = converted(lines(tmp_path / "a.jsonl", *rows))
    assert facts["not_carried"] == {"thoughts": 1}


@pytest.mark.parametrize("off", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"step_loss_mask": 0}])
def test_a_sharegpt_answer_taken_out_of_the_loss_stays_so(tmp_path: Path, off: Row) -> None:
    on = {name: 1 if name != "train" else True for name in off}
    rows = [{"conversations": [TURNS[0] | off, TURNS[1] | off, TURNS[0], TURNS[1] | on]}, {"conversations": TURNS}]
    for source in (lines(tmp_path / "a.jsonl", *rows), tmp_path / "a.json", tmp_path / "a.parquet"):
        if source.suffix == ".json":
            source.write_text(json.dumps(rows, indent=4))
        if source.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), source)
        ours, _ = converted(source)
        assert said(ours[0]) == [ASK, ANSWER | off, ASK, ANSWER]
        assert said(ours[1]) == [ASK, ANSWER]


def test_a_weight_between_0_and_1_is_told_to_count_as_1(tmp_path: Path) -> None:
    for turns in ([TURNS[0], TURNS[1] | {"weight": 0.1}], [ASK, ANSWER | {"weight": 0.1}]):
        name = "messages" if turns[0] is ASK else "conversations"
        _, facts = converted(lines(tmp_path / "a.jsonl", {name: turns}, {name: [turns[0], turns[1] | {"weight": 1}]}))
        assert facts["not_carried"] == {"weight: neither 0 nor 1, and counts as 1": 1}


def test_a_system_column_is_the_first_message_unless_there_is_one(tmp_path: Path) -> None:
    own = {"role": "system", "content": "Mine."}
    rows = [
        {"system": "Be brief.", "conversations": TURNS},
        {"system": "", "conversations": TURNS},
        {"system": "Mine.", "messages": [own, ASK, ANSWER]},
        {"system": "Other.", "messages": [own, ASK, ANSWER]},
    ]
    ours, facts = converted(lines(tmp_path / "a.jsonl", *rows))
    assert [said(row)[0]["content"] for row in ours] == ["Be brief.", "2+2?", "Mine.", "Mine."]
    assert facts["mapped"] == {"system column to the first message": 1}
    assert list(facts["not_carried"].values()) == [1]
    assert [row["system"] for row in ours] == [row["system"] for row in rows]


BAD: list[tuple[Row, str, str]] = [
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "media",
        "turn 0 holds a part of the type 'image_url'",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "data": "x"}]}]}, "media", "'input_audio'; only text"),
    ({"messages": [{"role": "user", "content": ["text"]}]}, "not_text", "a list that holds text, not parts of text"),
    ({"messages": [ASK, {"role": "assistant", "content": None}]}, "missing_value", "turn 1 has no 'content'"),
    ({"messages": [ASK, {"role": "assistant", "content": None, "tool_calls": []}]}, "missing_value", "turn 1 has no 'content'"),
    ({"messages": [ASK | {"tool_calls": [CALL]}]}, "bad_tool_call", "turn 0 has tool calls and is a user turn"),
    (
        {"messages": [ANSWER | {"tool_calls": [{"name": "f", "arguments": "{x"}]}]},
        "bad_tool_call",
        "arguments of 'f' is text that is not JSON",
    ),
    (
        {"messages": [ANSWER | {"tool_calls": [{"name": "f", "arguments": [1]}]}]},
        "bad_tool_call",
        "the arguments of 'f' are a list, not an object",
    ),
    ({"messages": [ANSWER | {"tool_calls": [{"arguments": {}}]}]}, "bad_tool_call", "no function with a name"),
    ({"messages": [ANSWER | {"tool_calls": [CALL | {"more": 1}]}]}, "bad_tool_call", "the unknown field 'more'"),
    ({"conversations": [{"from": "function_call", "value": "call it"}]}, "bad_tool_call", "not JSON"),
    ({"conversations": TURNS, "tools": "weather"}, "bad_tools", "tools is text that is not JSON"),
    ({"conversations": TURNS, "tools": [{"description": "x"}]}, "bad_tools", "tool 0 has no function with a name"),
    ({"messages": [ANSWER | {"train": "no"}]}, "bad_switch", "'train' is text, not a number or a boolean"),
    ({"messages": [ANSWER | {"name": 3}]}, "not_text", "'name' is a number, not text"),
    ({"question": "q", "answer": 4}, "not_text", "'answer' is a number, not text"),
    ({"question": "q", "answer": None}, "no_conversation", "no conversation: answer is null"),
    ({"prompt": "q"}, "no_conversation", "no conversation: "),
    ({"conversations": TURNS, "deep": json.loads("[" * 65 + "]" * 65)}, "too_deep", "nested deeper than 64 levels"),
    (
        {
            "conversations": [
                {"from": "function_call", "value": json.dumps({"name": "f", "arguments": {"x": json.loads("[" * 65 + "]" * 65)}})}
            ]
        },
        "bad_tool_call",
        "nested deeper",
    ),
]


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD)
def test_what_cannot_be_trained_as_it_is_stops_the_run_or_is_counted(tmp_path: Path, bad: Row, reason: str, detail: str) -> None:
    good = {"messages": [ASK, ANSWER]}
    for number, rows in enumerate(([good, bad], [good, bad, good])):
        source = lines(tmp_path / f"{number}.jsonl", *rows)
        with pytest.raises(DataError, match=r"row 1 \(counted from 0\): ") as caught:
            converted(source)
        assert detail in str(caught.value)
        ours, facts = converted(source, on_bad_row="drop")
        assert {name: count for name, count in facts["dropped"].items() if count} == {reason: 1}
        assert [said(row) for row in ours] == [[ASK, ANSWER]] * (len(rows) - 1)


def test_fields_and_roles_map_other_names(tmp_path: Path) -> None:
    turns = [{"speaker": "bot", "text": "4"}, {"speaker": "customer", "text": "2+2?"}]
    rows = [{"dialog": turns[::-1], "functions": [TOOL], "setup": "Be brief."}, {"q": "2+2?", "a": "4", "dialog": None}]
    fields = {
        "messages": "dialog",
        "role": "speaker",
        "content": "text",
        "system": "setup",
        "tools": "functions",
        "prompt": "q",
        "completion": "a",
    }
    roles = {"bot": "assistant", "customer": "user"}
    ours, _ = converted(lines(tmp_path / "a.jsonl", *rows), fields=fields, roles=roles)
    assert [said(row) for row in ours] == [[{"role": "system", "content": "Be brief."}, ASK, ANSWER], [ASK, ANSWER]]
    assert json.loads(ours[0]["tools"])[0]["function"] == TOOL
    with pytest.raises(DataError, match=r"unknown role 'customer' .*convert\.roles can map it"):
        converted(lines(tmp_path / "a.jsonl", {"messages": turns[::-1]}), fields={"role": "speaker", "content": "text"})


def test_roles_are_mapped_on_whole_columns_too(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "customer", "value": "2+2?"}, TURNS[1]]}] * 2
    ours, _ = converted(lines(tmp_path / "a.jsonl", *rows), roles={"customer": "user"})
    assert [said(row) for row in ours] == [[ASK, ANSWER]] * 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [("convert.fields.answer=a", r"convert\.fields knows messages, .* not 'answer'"), ("convert.roles.bot=robot", "not 'robot'")],
)
def test_names_that_are_none_of_ours_are_refused_with_the_configuration(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override({"name": "x"}, [setting], "command line")
