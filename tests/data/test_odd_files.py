"""Files as people have them: odd columns, odd encodings, damage, copies; read, or told in one sentence with file and row."""

from __future__ import annotations

import gzip
import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from talaria.common.errors import DataError, UserError
from talaria.config.data_settings import Convert
from talaria.data.convert import convert
from talaria.data.readers import json_split, tables
from talaria.data.source_files import matches

Row = dict[str, Any]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]


def lines(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(source: Path, **settings: Any) -> tuple[list[Row], dict[str, Any]]:
    output = source.with_name("out.parquet")
    facts = convert(source, output, Convert(**settings))
    return pq.read_table(output).to_pylist(), facts


COLUMNS: list[tuple[list[Any], list[Any]]] = [
    (["B", 4], ['"B"', "4"]),
    ([1, "a", None], ["1", '"a"', None]),
    ([[1, "a"], [2]], ['[1, "a"]', "[2]"]),
    ([{}, {"x": 1}], [{"x": None}, {"x": 1}]),
    ([{}, {}], ["{}", "{}"]),
    ([{"x": {}}, {"x": None}], ['{"x": {}}', '{"x": null}']),
    ([None, None], [None, None]),
    ([{"x": None}, {"x": None}], [{"x": None}, {"x": None}]),
    ([12345678901234567890, 12345678901234567891], ["12345678901234567890", "12345678901234567891"]),
    ([-(2**63) - 1, 1], ["-9223372036854775809", "1"]),
    ([2**63 - 1, -(2**63)], [2**63 - 1, -(2**63)]),
    ([1, 0.5], [1.0, 0.5]),
    ([True, 1], ["true", "1"]),
    (["2024-01-31", None], ["2024-01-31", None]),
]


@pytest.mark.parametrize(("values", "expected"), COLUMNS)
@pytest.mark.parametrize("chunk", [json_split.CHUNK, 16])
def test_a_side_column_of_any_values_is_kept(
    tmp_path: Path, values: list[Any], expected: list[Any], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its rows are read together or a chunk each."""
    monkeypatch.setattr(json_split, "CHUNK", chunk)
    rows = [{"x": value, "messages": MESSAGES} for value in values]
    ours, facts = converted(lines(tmp_path / "a.jsonl", *rows))
    assert [row["x"] for row in ours] == expected
    assert [row["messages"] for row in ours] == [MESSAGES] * len(rows)
    assert facts["rows"] == len(rows)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_answers_that_are_all_dates_stay_text(tmp_path: Path, kind: str) -> None:
    day = "1969-07-20"
    chat = [{"role": "user", "content": "1969-07-16T13:32:00"}, {"role": "assistant", "content": day}]
    shapes: list[Row] = [{"messages": chat}, {"prompt": "When?", "completion": day}, {"instruction": "When?", "output": day}]
    for number, row in enumerate(shapes):
        source = tmp_path / f"{number}.{kind}"
        source.write_text(json.dumps([row] * 2) if kind == "json" else f"{json.dumps(row)}\n" * 2)
        rows, _ = converted(source)
        assert [row["messages"][-1]["content"] for row in rows] == [day, day]
        assert rows[0]["messages"][0]["content"] in ("When?", "1969-07-16T13:32:00")


def test_a_column_of_two_types_over_files_is_json_text(tmp_path: Path) -> None:
    lines(tmp_path / "json" / "a.jsonl", {"x": 1, "messages": MESSAGES})
    lines(tmp_path / "json" / "b.jsonl", {"x": "1", "messages": MESSAGES})
    assert [row["x"] for row in converted(tmp_path / "json")[0]] == ["1", '"1"']
    for name, value in (("a", 1), ("b", "1")):
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(pa.table({"x": [value], "messages": [MESSAGES]}), tmp_path / "parquet" / f"{name}.parquet")
    assert [row["x"] for row in converted(tmp_path / "parquet")[0]] == ["1", '"1"']


def test_all_null_fields_beside_a_dropped_row(tmp_path: Path) -> None:
    good = [message | {"tool_calls": None, "note": None} for message in MESSAGES]
    rows = [{"messages": good}, {"messages": [MESSAGES[0] | {"content": None, "tool_calls": None}]}, {"messages": good}]
    turns = [{"conversations": [turn | {"n": None} for turn in TURNS]}, {"conversations": [None]}]
    for source in (lines(tmp_path / "a.jsonl", *rows), tmp_path / "a.parquet"):
        if source.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), source)
        ours, facts = converted(source, on_bad_row="drop")
        assert [[{k: m[k] for k in ("role", "content")} for m in row["messages"]] for row in ours] == [MESSAGES] * 2
        assert facts["dropped"]["missing_value"] == 1
    pq.write_table(pa.Table.from_pylist(turns), tmp_path / "b.parquet")
    ours, facts = converted(tmp_path / "b.parquet", on_bad_row="drop")
    assert [row["messages"] for row in ours] == [MESSAGES]
    assert facts["dropped"]["not_a_turn"] == 1


def json_typed(values: list[Any]) -> pa.Array:
    return pa.array([None if value is None else json.dumps(value) for value in values], pa.json_(pa.string()))


def test_what_datasets_writes_as_json_is_decoded_under_both_columns(tmp_path: Path) -> None:
    content = json_typed([m["content"] for m in MESSAGES] + [[{"type": "text", "text": "Hi"}], "Hello"])
    role = pa.array([m["role"] for m in MESSAGES] * 2)
    struct = pa.StructArray.from_arrays([role, content], ["role", "content"])
    for column, turns in (("messages", struct), ("messages", json_typed(MESSAGES * 2)), ("conversations", json_typed(TURNS * 2))):
        table = pa.table({column: pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), turns), "x": json_typed([1, "a"])})
        pq.write_table(table, tmp_path / "a.parquet")
        ours, _ = converted(tmp_path / "a.parquet")
        assert [row["messages"] for row in ours] == [MESSAGES] * 2
        assert [row["x"] for row in ours] == ["1", '"a"']
    nothing = pa.table({"conversations": pa.ListArray.from_arrays(pa.array([0, 1, 3], pa.int32()), json_typed([None, *TURNS]))})
    pq.write_table(nothing, tmp_path / "a.parquet")
    ours, facts = converted(tmp_path / "a.parquet", on_bad_row="drop")
    assert len(ours) == facts["dropped"]["not_a_turn"] == 1


@pytest.mark.parametrize(
    "kind",
    [lambda turn: pa.list_(turn, 2), pa.list_view, pa.large_list_view, pa.large_list, pa.list_],
    ids=["fixed_size", "view", "large_view", "large", "plain"],
)
def test_lists_of_every_kind(tmp_path: Path, kind: Any) -> None:
    turn = pa.struct([("role", pa.large_string()), ("content", pa.string())])
    pq.write_table(pa.table({"messages": pa.array([MESSAGES] * 3, kind(turn)), "n": [1, 2, 3]}), tmp_path / "a.parquet")
    ours, _ = converted(tmp_path / "a.parquet")
    assert [(row["n"], row["messages"]) for row in ours] == [(n, MESSAGES) for n in (1, 2, 3)]


def test_whole_numbers_of_128_bits_are_text(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": [2**64, 1], "messages": [MESSAGES] * 2}, schema_overrides={"x": pl.Int128})
    frame.write_parquet(tmp_path / "a.parquet")
    ours, _ = converted(tmp_path / "a.parquet")
    assert [row["x"] for row in ours] == [str(2**64), "1"]


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([MESSAGES]), pa.array(["a"]), pa.array(["b"])], names=["messages", "x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: has two columns named 'x'; rename or drop one"):
        converted(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("question,answer,answer\na,b,c\n")
    with pytest.raises(DataError, match=r"a\.csv: has two columns named 'answer'"):
        converted(tmp_path / "a.csv")


def test_a_damaged_page_is_told_with_its_file_and_place(tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    pq.write_table(pa.table({"messages": [MESSAGES] * 300, "x": [str(n) * 50 for n in range(300)]}), source, row_group_size=100)
    start = pq.read_metadata(source).row_group(1).column(2).data_page_offset
    data = bytearray(source.read_bytes())
    data[start : start + 60] = bytes(60)
    source.write_bytes(data)
    for on_bad_row in ("error", "drop"):
        with pytest.raises(DataError, match=r"a\.parquet: not a parquet file that can be read.*\(") as caught:
            converted(source, on_bad_row=on_bad_row)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_parquet_is_read_by_bytes_as_well_as_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a hundredth of the bound, then rows of half of it: no chunk has more than a few times the bound."""
    monkeypatch.setattr(tables, "BYTES", 1 << 20)
    long = [{"messages": [MESSAGES[0], {"role": "assistant", "content": letter * (1 << 19)}]} for letter in "abcdefgh"]
    short = [{"messages": [MESSAGES[0], {"role": "assistant", "content": str(n) * 2000}]} for n in range(400)]
    source = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([*short, *long, *short]), source, row_group_size=300)
    sizes = [batch.table.nbytes for _, batch in tables.TableReader.of([json_file(source, "parquet")]).chunks()]
    assert max(sizes) < 8 << 20
    ours, _ = converted(source)
    assert [row["messages"][1]["content"] for row in ours] == [row["messages"][1]["content"] for row in (*short, *long, *short)]


def json_file(path: Path, kind: Any) -> Any:
    from talaria.data.source_files import SourceFile

    return SourceFile(path, str(path), kind)


def test_empty_shards_hold_no_rows(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    lines(folder / "b.jsonl", {"messages": MESSAGES})
    for name, text in (("a.jsonl", ""), ("c.jsonl", " \n"), ("d.json", "[]"), ("e.jsonl.gz", "")):
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    ours, facts = converted(folder)
    assert (len(ours), facts["rows_in"]) == (1, 1)
    (folder / "b.jsonl").unlink()
    with pytest.raises(DataError, match="holds no row with any column"):
        converted(folder)


def test_gzip_and_frames_of_pzstd_are_read_beside_plain_files(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    texts = [json.dumps({"id": str(n), "messages": MESSAGES}).encode() + b"\n" for n in range(4)]
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00" + b"size"
    folder.mkdir()
    (folder / "0.jsonl").write_bytes(texts[0])
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(texts[1]) + gzip.compress(texts[2]))
    (folder / "2.jsonl.zst").write_bytes(skippable + zstandard.compress(texts[3]) + skippable + zstandard.compress(b"\n"))
    ours, _ = converted(folder)
    assert [row["id"] for row in ours] == ["0", "1", "2", "3"]
    (folder / "1.jsonl.gz").write_bytes(gzip.compress(texts[1] * 999)[:-9])
    with pytest.raises(DataError, match=r"1\.jsonl\.gz: cannot be read: Truncated"):
        converted(folder)


def test_csv_is_text_with_quotes_line_breaks_and_numbers_as_they_stand(tmp_path: Path) -> None:
    text = '\ufeffquestion,answer,id\n"a\nb","x, ""y""",007\nnull,NA,\n'
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    ours, facts = converted(tmp_path / "a.csv")
    assert [(row["question"], row["answer"], row["id"]) for row in ours] == [("a\nb", 'x, "y"', "007"), ("null", "NA", "")]
    assert facts["shapes"] == {"question": 2}
    (tmp_path / "b.csv").write_text("question,answer\na,b\nc\n")
    with pytest.raises(DataError, match=r"b\.csv: not a csv file that can be read.*Expected 2 columns, got 1"):
        converted(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_text("messages\n" + '"' + json.dumps(MESSAGES).replace('"', '""') + '"\n')
    assert converted(tmp_path / "c.csv")[0] == [{"messages": MESSAGES}]


def test_hidden_copies_are_skipped_and_what_is_left_out_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    lines(folder / "a.jsonl", {"messages": MESSAGES})
    for name in (".ipynb_checkpoints/a-checkpoint.jsonl", ".a.jsonl", "notes.txt", "b.jsonl.bz2"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "a.jsonl", folder / name)
    (folder / "dataset_info.json").write_text("{}")
    ours, facts = converted(folder)
    assert len(ours) == 1
    assert facts["left_out"] == [".a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "b.jsonl.bz2", "notes.txt"]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("*", "abcd"),
        ("*.jsonl", "abc"),
        ("**/*.jsonl", "abc"),
        ("sub/*.jsonl", "b"),
        ("sub/**", "bc"),
        ("sub/**/*.jsonl", "bc"),
        ("**/deep/*", "c"),
        ("[ab].jsonl", "ab"),
        ("[!a].jsonl", "bc"),
        ("?.json", "d"),
        ("*.json", "d"),
    ],
)
def test_globs_are_pathlibs(tmp_path: Path, pattern: str, taken: str) -> None:
    names = {"a": "a.jsonl", "b": "sub/b.jsonl", "c": "sub/deep/c.jsonl", "d": "d.json"}
    assert [letter for letter, name in names.items() if matches(name, pattern)] == list(taken)
    for name in names.values():
        lines(tmp_path / name)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(pattern) if path.is_file()}
    if pattern != "sub/**":  # pathlib's means folders alone before 3.13
        assert {names[letter] for letter in taken} == found


@pytest.mark.parametrize("depth", [65, 5000])
def test_deep_nesting_is_bounded_before_a_reader_sees_it(tmp_path: Path, depth: int) -> None:
    """In a line, in an array of any layout, before and after sound rows; brackets in texts do not count."""
    deep = '{"messages": [], "x": ' + "[" * depth + "]" * depth + "}"
    good = json.dumps({"messages": [MESSAGES[0], {"role": "assistant", "content": '\\"' + "[{" * depth}]})
    for name, text in (("a.jsonl", f"{good}\n{deep}\n{good}\n"), ("a.json", f"[{good},\n  {deep}, {good}]")):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=r"row 1 \(counted from 0\): nested deeper than 64 levels"):
            converted(tmp_path / name)
        ours, facts = converted(tmp_path / name, on_bad_row="drop")
        assert (len(ours), facts["dropped"]["too_deep"]) == (2, 1)


def test_convert_takes_the_place_of_nothing_but_its_own_output(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", {"messages": MESSAGES})
    theirs = tmp_path / "theirs.parquet"
    pq.write_table(pa.table({"messages": [MESSAGES]}), theirs)
    before = theirs.read_bytes()
    for output, message in ((source, "is the input itself"), (theirs, "`talaria convert` did not make")):
        with pytest.raises(UserError, match=f"{output.name}: .*{message}.*; choose another --output"):
            convert(source, output, Convert())
    link = tmp_path / "link.jsonl"
    link.symlink_to(source)
    with pytest.raises(UserError, match="is the input itself"):
        convert(source, link, Convert())
    assert (json.loads(source.read_text()), theirs.read_bytes()) == ({"messages": MESSAGES}, before)
    own = tmp_path / "own.parquet"
    for _ in range(2):
        convert(source, own, Convert())
    with pytest.raises(UserError, match="is the input itself"):
        convert(own, own, Convert())
    calls = [MESSAGES[0], {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}]
    convert(lines(tmp_path / "b.jsonl", {"messages": calls}), own, Convert())
    convert(source, own, Convert())
    assert pq.read_table(own).to_pylist() == [{"messages": MESSAGES}]


def test_the_texts_of_conversations_are_not_compressed_and_convert_knows_its_files_by_that(tmp_path: Path) -> None:
    """Also those of earlier versions, which compressed the source's own texts; not a file in which nothing is compressed."""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    source, own = lines(tmp_path / "a.jsonl", {"id": "a", "conversations": turns}), tmp_path / "own.parquet"
    convert(source, own, Convert())
    group = pq.read_metadata(own).row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    texts = {"conversations.list.element.from", "conversations.list.element.value", "messages.list.element.content"}
    assert {path for path, codec in found.items() if codec == "UNCOMPRESSED"} == texts
    assert {codec for path, codec in found.items() if path not in texts} == {"LZ4"}
    table = pq.read_table(own)
    earlier = {path: "none" if path.startswith("messages") and path in texts else "lz4" for path in found}
    for codecs, made_by_convert in ((earlier, True), ("none", False)):
        pq.write_table(table, own, compression=codecs)
        with nullcontext() if made_by_convert else pytest.raises(UserError, match="`talaria convert` did not make"):
            convert(source, own, Convert())


def test_duplicates_are_those_of_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the user's function; and two rows with other tools are two."""
    module = tmp_path / "own_step.py"
    module.write_text(
        "import polars as pl\n"
        "def add(rows):\n"
        "    first = pl.concat_list([pl.struct(pl.lit('system').alias('role'), pl.col('s').alias('content'))])\n"
        "    return rows.with_columns(messages=pl.concat_list([first, pl.col('messages')]))\n"
        "def pair(rows):\n"
        "    return rows.select(question='q', answer='a')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TALARIA_ALLOW_CUSTOM_CODE", "1")
    source = lines(tmp_path / "a.jsonl", *({"s": s, "messages": MESSAGES} for s in ("a", "b", "a")))
    ours, facts = converted(source, function="own_step:add", drop_duplicates=True)
    assert [row["s"] for row in ours] == ["a", "b"]
    assert facts["dropped"]["duplicate"] == 1
    rows = [{"q": q, "a": "b", "messages": [MESSAGES[0] | {"content": None}]} for q in "ab"]
    ours, _ = converted(lines(tmp_path / "b.jsonl", *rows), function="own_step:pair", drop_duplicates=True)
    assert [row["question"] for row in ours] == ["a", "b"]
    tools = [[{"name": name}] for name in "fgf"]
    rows = [{"messages": MESSAGES, "tools": tool} for tool in tools]
    ours, _ = converted(lines(tmp_path / "c.jsonl", *rows), drop_duplicates=True)
    assert [json.loads(row["tools"])[0]["function"]["name"] for row in ours] == ["f", "g"]


SPLITS: list[tuple[list[str], list[int]]] = [
    (["data/test-00000-of-00001.jsonl", "data/train-00000-of-00001.jsonl", "data/validation-00000-of-00001.jsonl"], [1]),
    (["dev.jsonl", "train.jsonl"], [1]),
    (["test/a.jsonl", "train/a.jsonl", "z.jsonl"], [1, 2]),
    (["chat_train.jsonl", "chat_val.jsonl"], [0]),
    (["test-a.jsonl", "validation-a.jsonl"], [0, 1]),
    (["contest.jsonl", "latest.jsonl", "training.jsonl"], [0, 1, 2]),
]


@pytest.mark.parametrize(("names", "taken"), SPLITS)
def test_validation_and_test_files_are_not_trained_unasked(tmp_path: Path, names: list[str], taken: list[int]) -> None:
    from talaria.config.data_settings import Download
    from talaria.config.schema import Config
    from talaria.data.download import download

    folder = tmp_path / "folder"
    for number, name in enumerate(names):
        lines(folder / name, {"n": number, "messages": MESSAGES})
    ours, facts = converted(folder)
    assert [row["n"] for row in ours] == taken
    assert facts.get("left_out", []) == [name for number, name in enumerate(names) if number not in taken]
    kept = download(Config(name="x", download=Download(source="local", path=folder)), tmp_path / "raw")["files"]
    assert sorted(kept) == [names[number] for number in taken]
    asked = Config(name="x", download=Download(source="local", path=folder, files="**/*"))
    every = download(asked, tmp_path / "raw")["files"]
    assert sorted(every) == sorted(names)


def test_the_stage_looks_at_the_beginning_of_every_file_before_it_converts_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from talaria.config.schema import Config
    from talaria.data import convert as stage

    for number in range(3):
        lines(tmp_path / "download" / "data" / f"{number}.jsonl", {"n": number, "messages": MESSAGES})
    inputs, first, again = {"download": tmp_path / "download"}, tmp_path / "first", tmp_path / "again"
    first.mkdir()
    again.mkdir()
    assert stage.run(Config(name="x"), inputs, first)["rows"] == 3
    assert [path.name for path in first.iterdir()] == ["messages.parquet"]
    lines(tmp_path / "download" / "data" / "2.jsonl", {"messages": [{"role": "robot", "content": "x"}]})
    monkeypatch.setattr(stage, "convert", None)  # not begun
    with pytest.raises(DataError, match=r"2\.jsonl: row 0 \(counted from 0\): turn 0 has the unknown role 'robot'"):
        stage.run(Config(name="x"), inputs, again)
