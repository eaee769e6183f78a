"""Convert against the reference script, and everything it is asked to do besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from talaria.common.errors import DataError, UserError
from talaria.config.data_settings import Convert
from talaria.data import convert_rows
from talaria.data.convert import convert
from talaria.data.readers import json_schema, json_split
from talaria.data.synthetic.generator import generate, write_sample

from tests.data.reference import our_rows, reference_rows

Row = dict[str, Any]
A_TURN = '[{"role": "user", "content": "a"}]'
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ODD_ROWS: list[Row] = [
    {"conversations": TURNS, "source": "first"},
    {"conversations": [{"from": "gpt", "value": "Answer first"}, *TURNS], "id": "1"},
    {"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": ""}], "views": 12},
    {"conversations": [], "title": "no turns"},
    {"conversations": TURNS, "source": "first"},
    {"conversations": [{"from": "human", "value": "say <|im_end|>\n"}, {"from": "gpt", "value": "no", "weight": 0.5}]},
    {"conversations": [{"from": "system", "value": "é \u2028 😀 \U0001d11e"}, {"from": "gpt", "value": "a\0b \\ \" / \r\n\t"}]},
    {"conversations": TURNS, "hash": [2**63 - 1, -(2**63), 0], "skip_prompt_formatting": False, "avatarUrl": None},
    {"conversations": TURNS, "hash": [], "custom_instruction": True, "language": "English", "views": -1},
    {"conversations": [{"from": "human", "value": "},\n    {"}, {"from": "gpt", "value": "\n    },\n    {\n\\"}], "idx": "]"},
    {"conversations": [{"from": "human", "value": "x" * 70_000}, {"from": "gpt", "value": "long", "weight": 1}], "topic": ""},
    {"conversations": TURNS, "source": None, "system_prompt": "p", "model": "m", "model_name": "n", "category": "c"},
]  # fmt: skip


def write_json(path: Path, rows: list[Any], **how: Any) -> Path:
    path.write_text(json.dumps(rows, **({"indent": 4} | how)), encoding="utf-8")
    return path


def converted(source: Path, **settings: Any) -> tuple[list[Row], dict[str, Any]]:
    output = source.with_suffix(".out.parquet")
    facts = convert(source, output, Convert(**settings))
    return our_rows(output), facts


def test_rows_equal_the_reference_scripts_on_odd_rows(tmp_path: Path) -> None:
    source = write_json(tmp_path / "odd.json", ODD_ROWS)
    ours, facts = converted(source)
    theirs = reference_rows(source)
    assert ours == theirs
    assert list(ours[0]) == list(theirs[0])
    assert facts["rows"] == facts["rows_in"] == len(ODD_ROWS)
    assert sum(facts["dropped"].values()) == 0


def test_rows_equal_the_reference_scripts_on_the_sample(tmp_path: Path) -> None:
    source = tmp_path / "sample.json"
    write_sample(source, 3000, seed=3)
    assert converted(source)[0] == reference_rows(source)


@pytest.mark.parametrize(
    ("suffix", "how"),
    [
        (".json", {"indent": 4}),
        (".json", {"indent": 2, "ensure_ascii": False}),
        (".json", {"indent": "\t"}),
        (".json", {"indent": None}),
        (".json", {"indent": None, "separators": (",", ":"), "ensure_ascii": False}),
    ],
)
def test_every_way_to_write_an_array_gives_the_same_rows(tmp_path: Path, suffix: str, how: dict[str, Any]) -> None:
    plain, _ = converted(write_json(tmp_path / "plain.json", ODD_ROWS))
    other, _ = converted(write_json(tmp_path / f"other{suffix}", ODD_ROWS, **how))
    assert other == plain


def test_lines_zstd_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    plain, _ = converted(write_json(tmp_path / "plain.json", ODD_ROWS))
    lines = "".join(json.dumps(row) + "\n" for row in ODD_ROWS)
    (tmp_path / "rows.jsonl").write_text(lines)
    assert converted(tmp_path / "rows.jsonl")[0] == plain
    packed = zstandard.compress((tmp_path / "plain.json").read_bytes()) + zstandard.compress(b"\n")
    (tmp_path / "packed.json.zst").write_bytes(packed)
    assert converted(tmp_path / "packed.json.zst")[0] == plain
    table = pq.read_table(tmp_path / "plain.out.parquet").drop_columns(["messages"])
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    assert converted(tmp_path / "rows.parquet")[0] == plain


def test_columns_have_the_hubs_types_and_messages_come_last(tmp_path: Path) -> None:
    converted(write_json(tmp_path / "odd.json", ODD_ROWS))
    schema = pq.read_schema(tmp_path / "odd.out.parquet")
    turn = pa.struct([("from", pa.string()), ("value", pa.string()), ("weight", pa.float64())])
    types = {
        "conversations": pa.list_(pa.field("element", turn)),
        "hash": pa.list_(pa.field("element", pa.int64())),
        "views": pa.int64(),
        "custom_instruction": pa.bool_(),
        "skip_prompt_formatting": pa.bool_(),
        "messages": pa.list_(pa.field("element", pa.struct([("role", pa.string()), ("content", pa.string())]))),
    }
    assert {name: schema.field(name).type for name in schema.names} == {
        name: types.get(name, pa.string()) for name in schema.names
    }
    assert schema.names[0] == "conversations"
    assert schema.names[-1] == "messages"


def test_a_source_without_weights_has_no_weight(tmp_path: Path) -> None:
    source = write_json(tmp_path / "plain.json", [{"conversations": TURNS}])
    converted(source)
    assert pq.read_table(tmp_path / "plain.out.parquet").to_pylist() == [{"conversations": TURNS, "messages": MESSAGES}]


def test_unknown_columns_keep_the_types_they_have(tmp_path: Path) -> None:
    rows = [
        {"conversations": TURNS, "score": 1, "day": "2024-01-31", "tags": ["a"]},
        {"conversations": TURNS, "score": 0.5, "nested": {"a": [1]}},
    ]
    ours, _ = converted(write_json(tmp_path / "rows.json", rows))
    assert [row["score"] for row in ours] == [1.0, 0.5]
    assert [row["day"] for row in ours] == ["2024-01-31", None]
    assert [row["nested"] for row in ours] == [None, {"a": [1]}]


def test_a_folder_is_read_in_the_order_of_names_and_columns_may_differ(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_json(folder / "b.json", [{"conversations": TURNS, "views": 2}])
    write_json(folder / "a.json", [{"conversations": TURNS, "source": "a"}, {"conversations": TURNS}])
    (folder / "README.md").write_text("not data")
    ours, _ = converted(folder)
    assert [(row["source"], row["views"]) for row in ours] == [("a", None), (None, None), (None, 2)]


def test_parquet_files_may_have_columns_in_another_order_and_encoding(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    turns = pa.list_(pa.struct([("from", pa.large_string()), ("value", pa.string_view())]))
    pq.write_table(pa.table({"conversations": pa.array([TURNS], turns), "n": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"m": pa.array(["x"]).dictionary_encode(), "conversations": [TURNS]}), folder / "b.parquet")
    ours, _ = converted(folder)
    assert [(row["n"], row["m"], row["messages"]) for row in ours] == [(1, None, MESSAGES), (None, "x", MESSAGES)]


def test_what_the_reference_wrote_can_be_read(tmp_path: Path) -> None:
    from tests.data.reference import reference_convert

    source = write_json(tmp_path / "odd.json", ODD_ROWS)
    reference_convert(source, tmp_path / "theirs.parquet", tmp_path / "cache")
    assert converted(tmp_path / "theirs.parquet")[0] == converted(source)[0]
    table = pq.read_table(tmp_path / "theirs.parquet").drop_columns(["messages"])  # turns as JSON text
    pq.write_table(table, tmp_path / "turns.parquet")
    assert converted(tmp_path / "turns.parquet")[0] == converted(source)[0]


def test_messages_keep_their_further_fields(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{}"}], "weight": 0},
        {"role": "tool", "content": "4", "name": "f"},
        {"role": "assistant", "content": "four", "train": False, "step_loss_mask": 1},
    ]
    rows = [{"messages": messages, "id": "a"}, {"messages": MESSAGES, "id": "b"}]
    ours, _ = converted(write_json(tmp_path / "rows.json", rows))
    assert list(ours[0]) == ["id", "messages"]
    found = [{name: value for name, value in message.items() if value is not None} for message in ours[0]["messages"]]
    messages[2]["tool_calls"] = '[{"type": "function", "function": {"name": "f", "arguments": {}}}]'
    assert found == messages
    assert list(ours[0]["messages"][0])[:2] == ["role", "content"]


BAD_ROWS: list[tuple[Any, str, str]] = [
    ({"conversations": [{"from": "bot", "value": "x"}]}, "unknown_role", "turn 0 has the unknown role 'bot'"),
    ({"conversations": [TURNS[0], {"from": "gpt", "value": None}]}, "missing_value", "turn 1 has no 'value'"),
    ({"conversations": [TURNS[0], {"from": "gpt"}]}, "missing_value", "turn 1 has no 'value'"),
    ({"conversations": [{"value": "x"}]}, "missing_value", "turn 0 has no 'from'"),
    (
        {"conversations": [{"speaker": "gpt", "text": "x"}]},
        "missing_value",
        "turn 0 has no 'from', but speaker, text (convert.fields can say what they are)",
    ),
    ({"conversations": None}, "no_conversation", "no conversation: conversations is null"),
    ({"source": "x"}, "no_conversation", "no conversation: "),
    ({"conversations": "text"}, "not_a_list", "conversations is text, not a list"),
    ({"conversations": {"from": "human", "value": "x"}}, "not_a_list", "conversations is an object, not a list"),
    ({"conversations": ["text"]}, "not_a_turn", "turn 0 is text, not an object"),
    ({"conversations": [None]}, "not_a_turn", "turn 0 is null, not an object"),
    ({"conversations": [{"from": "gpt", "value": 3}]}, "not_text", "'value' is a number, not text"),
    ({"conversations": [{"from": 3, "value": "x"}]}, "unknown_role", "has the unknown role 3"),
    (17, "not_an_object", "not an object but a number"),
    ([1], "not_an_object", "not an object but a list"),
]


@pytest.mark.parametrize("layout", ["pretty", "compact", "lines"])
@pytest.mark.parametrize(("bad", "reason", "detail"), BAD_ROWS)
def test_a_bad_row_stops_the_run_and_leaves_nothing_or_is_dropped_and_counted(
    tmp_path: Path, bad: Any, reason: str, detail: str, layout: str
) -> None:
    rows = [*ODD_ROWS, bad, {"conversations": TURNS, "id": "last"}, bad]
    source = write_json(tmp_path / "rows.json", rows, indent=4 if layout == "pretty" else None)
    if layout == "lines":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out" / "rows.parquet"
    with pytest.raises(DataError) as caught:
        convert(source, output, Convert())
    assert f"{source}: row {len(ODD_ROWS)} (counted from 0): " in str(caught.value)
    assert detail in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(output.parent.iterdir()) == []
    facts = convert(source, output, Convert(on_bad_row="drop"))
    assert {name: count for name, count in facts["dropped"].items() if count} == {reason: 2}
    assert (facts["rows_in"], facts["rows"]) == (len(rows), len(rows) - 2)
    assert our_rows(output)[-1]["id"] == "last"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """So that a file of a few thousand rows has several; returns their bytes."""
    monkeypatch.setattr(json_split, "CHUNK", 1 << 18)
    return 1 << 18


def test_the_row_of_an_error_counts_over_chunks(tmp_path: Path, small_chunks: int) -> None:
    """The file is longer than a chunk, so that the row is in a later one."""
    source = tmp_path / "long.json"
    write_sample(source, 3_000, seed=1)
    text = source.read_text().rsplit('"gpt"', 1)
    rows = json.loads("".join([text[0], '"bot"', text[1]]))
    bad = max(row for row, value in enumerate(rows) if any(turn["from"] == "bot" for turn in value["conversations"]))
    source.write_text('"bot"'.join(text))
    assert source.stat().st_size > 3 * small_chunks
    with pytest.raises(DataError, match=rf"row {bad} \(counted from 0\): turn \d+ has the unknown role 'bot'"):
        convert(source, tmp_path / "out.parquet", Convert())
    facts = convert(source, tmp_path / "out.parquet", Convert(on_bad_row="drop"))
    assert facts["rows"] == 2_999
    assert our_rows(tmp_path / "out.parquet")[bad:] == [] or bad < 2_999


@pytest.mark.parametrize("kind", ["lines", "lines that break", "pretty", "parquet"])
def test_a_few_odd_rows_are_taken_apart_and_change_nothing_for_the_others(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd: dict[int, Any] = {7: None, 23: [TURNS[0], {"from": "gpt", "value": None}], 40: [{"from": "bot", "value": "x"}]}
    rows = [{"conversations": odd.get(n, [TURNS[0], {"from": "gpt", "value": str(n), "weight": 1.0}]), "n": n} for n in range(60)]
    source = tmp_path / ("a.parquet" if kind == "parquet" else "a.json")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source)
    elif kind == "pretty":
        write_json(source, rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        # as many lines as rows, and row 7 on two of them
        source.write_text(text.replace('null, "n": 7}\n', 'null,\n"n": 7} ') if kind == "lines that break" else text)
    taken: list[int] = []
    one_by_one = convert_rows.by_row.convert_rows

    def counted(rows: Any, *how: Any) -> Any:
        taken.append(len(rows.values))
        return one_by_one(rows, *how)

    monkeypatch.setattr(convert_rows.by_row, "convert_rows", counted)
    ours, facts = converted(source, on_bad_row="drop")
    assert [row["n"] for row in ours] == [n for n in range(60) if n not in odd]
    assert facts["dropped"] | {"no_conversation": 1, "missing_value": 1, "unknown_role": 1} == facts["dropped"]
    assert "row 23 (counted from 0)" in facts["examples"]["missing_value"]
    assert taken[-1] == {"pretty": 60, "lines that break": 59}.get(kind, 3)  # the last line is a chunk of its own
    apart = source.with_suffix(".out.parquet").read_bytes()
    monkeypatch.setattr(convert_rows, "odd_rows", lambda table, plain: np.ones(len(table), np.bool_))
    assert converted(source, on_bad_row="drop")[1] == facts
    assert source.with_suffix(".out.parquet").read_bytes() == apart


def test_each_row_of_a_long_file_is_there_in_order(tmp_path: Path, small_chunks: int) -> None:
    source = tmp_path / "long.json"
    write_sample(source, 3_000, seed=2)
    ours, _ = converted(source)
    expected = [turn["value"] for row in generate(3_000, 2) for turn in row["conversations"]]
    assert [message["content"] for row in ours for message in row["messages"]] == expected


@pytest.mark.parametrize("late", [{"title": "t"}, {"weight": 0.5}, {"score": 1}, {}])
@pytest.mark.parametrize("rows", [None, 2_990])
def test_a_column_of_one_late_row_is_there_and_all_bytes_are_the_slow_readers(
    tmp_path: Path, small_chunks: int, monkeypatch: pytest.MonkeyPatch, late: dict[str, Any], rows: int | None
) -> None:
    """Few places of a file are looked at before it is read with the columns of its first rows."""
    monkeypatch.setattr(json_schema, "_LOOK", 1 << 10)
    source = tmp_path / "long.json"
    write_sample(source, 3_000, seed=4)
    values = [{"conversations": row["conversations"], "id": "x"} for row in json.loads(source.read_text())]
    for turn in (turn for row in values for turn in row["conversations"]):
        turn.pop("weight", None)
    target = values[2_995]["conversations"][0] if "weight" in late else values[2_995]
    target |= late
    write_json(source, values)
    assert source.stat().st_size > 3 * small_chunks
    ours, _ = converted(source, rows=rows)
    written = source.with_suffix(".out.parquet").read_bytes()
    assert [row.get("title") for row in ours[2_994:2_997]] == ([None, late.get("title"), None] if rows is None else [])
    monkeypatch.setattr(json_schema, "declared_schema", json_schema.quick_schema)
    converted(source, rows=rows)
    assert source.with_suffix(".out.parquet").read_bytes() == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n    {\n        "conversations": [', "the file stops at byte 34, in the middle"),
        ('[\n    {\n        "conversations": []\n    },\n    {\n        "id": 3\n    }\n', "in the middle"),
        ('[\n    {\n        "conversations": []\n    },\n]', "a comma too many or too few before byte"),
        ('[\n    {\n        "conversations": []\n    },\n    null\n]', "row 1 .*not an object but null"),
        ('[\n    {\n        "conversations": []\n    }\n]} {"rows":[\n    {\n        "id": 3\n    }\n]', "text follows the end"),
        ('{"conversations": []}\n{"conversations": [}\n', "row 1 .*not valid JSON"),
        ('{"conversations": []}\n{"conversations": [{"from": "gpt", "value": "a\nb"}]}\n', "row 1 .*not valid JSON"),
        ("[]", "holds no row with any column"),
        ("[{}]", "holds no row with any column"),
        ('[{"text": "hello"}]', "no column 'conversations' or 'messages', .* found text; name the columns with convert.fields"),
        ('[{"instruction": "a", "input": "b"}]', "found instruction, input"),
        ('{"data": [{"conversations": []}]}', "no column 'conversations'"),
        (f'[{{"prompt": {A_TURN}, "chosen": {A_TURN}}}]', r"\(convert\.fields\.completion=chosen, say\)"),
        (f'[{{"prompt": "a", "chosen": {A_TURN}}}]', r"\(convert\.fields\.messages=chosen, say\)"),
    ],
)
def test_what_is_no_data_is_told_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    source = tmp_path / "rows.json"
    source.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        convert(source, tmp_path / "out.parquet", Convert())
    assert str(source) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_text_that_is_not_utf8_is_told_with_its_row(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    good = json.dumps({"conversations": TURNS}).encode()
    source.write_bytes(good + b"\n" + good.replace(b"Hello", b"caf\xe9") + b"\n")
    for on_bad_row in ("error", "drop"):
        with pytest.raises(DataError, match=r"row 1 .*not valid UTF-8"):
            convert(source, tmp_path / "out.parquet", Convert(on_bad_row=on_bad_row))


def test_half_a_surrogate_pair_is_left_out_as_the_reference_does(tmp_path: Path) -> None:
    text = json.dumps([*ODD_ROWS, {"conversations": [{"from": "gpt", "value": "a HALF b"}]}], indent=4).replace("HALF", "\\ud83d")
    source = tmp_path / "rows.json"
    source.write_text(text)
    ours, facts = converted(source)
    assert ours == reference_rows(source)
    assert facts["repaired"] == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 and then nothing"), "not a parquet file"),
        (lambda path: path.write_text("a,b\n1,2\n"), "not a data file that can be read; expected parquet, JSON"),
        (lambda path: path.mkdir(), "holds no data file"),
        (lambda path: None, "no such file or folder"),
    ],
)
def test_files_that_are_no_data_are_refused(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(DataError, match=message):
        convert(tmp_path / "source", tmp_path / "out.parquet", Convert())


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: data[:40] + b"xx" + data[42:], lambda data: data + b"more"]
)
def test_a_damaged_zstd_file_is_told_and_not_taken_for_a_shorter_one(tmp_path: Path, damage: Any) -> None:
    lines = "".join(json.dumps({"conversations": TURNS, "id": str(n)}) + "\n" for n in range(10_000))
    source = tmp_path / "rows.jsonl.zst"
    source.write_bytes(damage(zstandard.compress(lines.encode())))
    with pytest.raises(DataError, match=r"rows\.jsonl\.zst: cannot be read: .*(Truncated|failed)"):
        convert(source, tmp_path / "out.parquet", Convert())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl.zst"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    source = write_json(tmp_path / "rows.json", ODD_ROWS)
    with pytest.raises(UserError, match=r"out\.parquet: cannot write there: File exists"):
        convert(source, source / "out.parquet", Convert())


def test_a_folder_with_both_kinds_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    folder.mkdir()
    write_json(folder / "a.json", ODD_ROWS)
    pq.write_table(pa.table({"conversations": [TURNS]}), folder / "a.parquet")
    with pytest.raises(DataError, match=r"JSON and parquet files; choose one kind with download\.files"):
        convert(folder, tmp_path / "out.parquet", Convert())


def test_the_output_may_not_be_a_folder(tmp_path: Path) -> None:
    source = write_json(tmp_path / "rows.json", ODD_ROWS)
    with pytest.raises(UserError, match=r"is a folder; name a file, for example .*messages\.parquet"):
        convert(source, tmp_path, Convert())


def test_drop_duplicates_keeps_the_first_of_equal_messages(tmp_path: Path) -> None:
    other = [{"from": "human", "value": "Hi\nassistant"}, {"from": "gpt", "value": "Hello"}]
    near = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "assistant\nHello"}]
    rows = [{"conversations": turns, "id": str(n)} for n, turns in enumerate([TURNS, other, TURNS, near, other, []])]
    source = write_json(tmp_path / "rows.json", rows)
    ours, facts = converted(source, drop_duplicates=True)
    assert [row["id"] for row in ours] == ["0", "1", "3", "5"]
    assert facts["dropped"]["duplicate"] == 2
    assert len(converted(source)[0]) == 6


def test_duplicates_are_found_over_chunks_and_differ_in_further_fields(tmp_path: Path, small_chunks: int) -> None:
    source = tmp_path / "long.json"
    write_sample(source, 5_000, seed=5)
    rows = {json.dumps([[turn["from"], turn["value"]] for turn in row["conversations"]]) for row in generate(5_000, 5)}
    ours, facts = converted(source, drop_duplicates=True)
    assert len(ours) == len(rows) == 5_000 - facts["dropped"]["duplicate"] < 5_000
    assert source.stat().st_size > 3 * small_chunks
    off = [MESSAGES[0], MESSAGES[1] | {"train": False}]
    on = [MESSAGES[0], MESSAGES[1] | {"train": True}]
    kept, _ = converted(write_json(tmp_path / "rows.json", [{"messages": m} for m in (on, off, on)]), drop_duplicates=True)
    assert [row["messages"][1]["train"] for row in kept] == [True, False]


def test_drop_empty_answers_takes_blank_ones_and_no_blank_questions(tmp_path: Path) -> None:
    def turns(*values: str) -> list[Row]:
        return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]

    rows = [
        {"conversations": turns(*values)}
        for values in (("a", "b"), ("a", ""), ("", "b"), ("a", " \n\u3000"), ("a", "b", "c", ""))
    ]
    ours, facts = converted(write_json(tmp_path / "rows.json", rows), drop_empty_answers=True)
    assert [len(row["messages"]) for row in ours] == [2, 2]
    assert facts["dropped"]["empty_answer"] == 3


@pytest.mark.parametrize("rows", [1, 3, 11, 12, 500])
def test_rows_takes_the_first_rows_of_the_source(tmp_path: Path, rows: int) -> None:
    source = write_json(tmp_path / "rows.json", ODD_ROWS)
    ours, facts = converted(source, rows=rows)
    assert ours == converted(source)[0][:rows]
    assert facts["rows_in"] == min(rows, len(ODD_ROWS))


def test_rows_stops_before_a_bad_row_and_counts_dropped_ones(tmp_path: Path) -> None:
    bad = {"conversations": [{"from": "x", "value": "y"}]}
    source = write_json(tmp_path / "rows.json", [ODD_ROWS[0], bad, ODD_ROWS[1], bad])
    assert converted(source, rows=1)[1]["rows"] == 1
    _, facts = converted(source, rows=3, on_bad_row="drop")
    assert (facts["rows_in"], facts["rows"]) == (3, 2)
