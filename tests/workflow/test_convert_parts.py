"""Converting in parts gives the bytes of one process, whatever the files, and the same sentence where a row stops the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from talaria.common.errors import UserError
from talaria.common.files import file_digest
from talaria.config.load import parse
from talaria.config.schema import Config
from talaria.data import convert_parts as in_parts
from talaria.data.readers import json_split
from talaria.data.readers.file_ranges import share_out
from talaria.data.source_files import find_files
from talaria.stages.run import run_stage
from talaria.store.store import Output, Store
from talaria.workflow import convert_parts

Row = dict[str, Any]


def chat(number: int) -> Row:
    """A column that comes late, one of two types, an odd row with a switch; lengths differ."""
    turns = [{"from": "human", "value": f"{number}?"}, {"from": "gpt", "value": str(number) * (1 + number % 30)}]
    more: Row = {"late": number} if number > 150 else {}
    return {"id": number if number % 2 else str(number), "conversations": turns, **more}


def calls(number: int) -> Row:
    call = {"name": "f", "arguments": {"n": number}}
    called: Row = {"content": None, "tool_calls": [call]} if number == 170 else {"content": "x"}
    return {"messages": [{"role": "user", "content": f"q{number}"}, {"role": "assistant", **called}]}


def lines(path: Path, rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def one_file(folder: Path) -> None:
    lines(folder / "a.jsonl", [chat(number) for number in range(200)])


def a_call_at_the_end(folder: Path) -> None:
    lines(folder / "a.jsonl", [calls(number) for number in range(200)])


def an_answer_that_does_not_count(folder: Path) -> None:
    rows = [{"conversations": [turn | {"weight": 1} for turn in chat(number)["conversations"]]} for number in range(200)]
    rows[170]["conversations"][1]["weight"] = 0
    lines(folder / "a.jsonl", rows)


def files_of_all_lengths(folder: Path) -> None:
    for number, count in enumerate((1, 90, 0, 40, 3)):
        lines(folder / f"{number}.jsonl", [chat(1000 * number + row) for row in range(count)])
    (folder / "5.json").write_text(json.dumps([chat(9)]))


def bad_rows(folder: Path) -> None:
    rows: list[Any] = [chat(number) for number in range(200)]
    rows[20], rows[120], rows[130] = {"x": 1}, {"conversations": 3}, {"conversations": 4}
    lines(folder / "a.jsonl", rows)


def parquet(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number in range(3):
        rows = [{"n": row, "conversations": chat(row)["conversations"]} for row in range(40)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{number}.parquet")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_split, "CHUNK", 700)


def config(shards: int, **convert: Any) -> Config:
    return parse({"name": "x", "convert": {"shards": shards, **convert}}, "test")


def downloaded(store: Store, write: Callable[[Path], None]) -> dict[str, Output]:
    def download(folder: Path) -> dict[str, Any]:
        write(folder / "data")
        return {}

    return {"download": store.run("download", "d" * 64, download, described_by={})}


def spread_out(store: Store, config: Config, made: dict[str, Output]) -> Output:
    parts = convert_parts.parts_to_do(config, store, made)
    for part in parts:
        convert_parts.find_columns(config, store, made, part)
    for part in reversed(parts):
        convert_parts.convert_part(config, store, made, part)
    return convert_parts.join(config, store, made)


def facts_of(output: Output) -> str:
    """Without the store's place, which sentences about rows name."""
    return json.dumps(output.facts, sort_keys=True).replace(str(output.path.parents[1]), "")


FILES = [one_file, a_call_at_the_end, an_answer_that_does_not_count, files_of_all_lengths, bad_rows, parquet]


@pytest.mark.parametrize("write", FILES)
def test_any_number_of_parts_gives_the_same_bytes(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop = {"on_bad_row": "drop"} if write is bad_rows else {}
    alone = Store(tmp_path / "alone")
    whole = run_stage("convert", config(1, **drop), alone, downloaded(alone, write))
    assert pq.read_metadata(whole.path / "messages.parquet").num_row_groups > 2
    joined: list[bool] = []
    monkeypatch.setattr(in_parts, "join", lambda *how, own=in_parts.join: joined.append(bool(found := own(*how))) or found)
    for shards in (2, 3, 7):
        store = Store(tmp_path / str(shards))
        made = downloaded(store, write)
        parts = spread_out(store, config(shards, **drop), made)
        assert parts.key == whole.key
        assert facts_of(parts) == facts_of(whole)
        assert file_digest(parts.path / "messages.parquet") == file_digest(whole.path / "messages.parquet")
        assert list((store.root / ".work").iterdir()) == []
        assert convert_parts.parts_to_do(config(shards, **drop), store, made) == []
    assert joined == [True] * 3, "nothing was converted a second time"


def test_a_row_that_stops_the_run_is_told_with_its_number_in_the_file(tmp_path: Path) -> None:
    told = []
    for shards in (1, 4):
        store = Store(tmp_path / str(shards))
        made = downloaded(store, bad_rows)
        with pytest.raises(UserError) as caught:
            spread_out(store, config(shards), made)
        told.append(str(caught.value).replace(str(store.root), ""))
    assert told[0] == told[1]
    assert "a.jsonl: row 20 (counted from 0)" in told[0]


def test_a_finished_part_is_not_done_again_and_a_missing_one_is_made_in_the_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, settings = Store(tmp_path), config(3)
    made = downloaded(store, one_file)
    for part in convert_parts.parts_to_do(settings, store, made):
        convert_parts.find_columns(settings, store, made, part)
    convert_parts.convert_part(settings, store, made, 0)
    with monkeypatch.context() as patch:
        patch.setattr(in_parts, "write", lambda *_: pytest.fail("it was there"))
        convert_parts.convert_part(settings, store, made, 0)
    assert convert_parts.join(settings, store, made).facts["rows"] == 200


def test_ranges_hold_every_byte_once_and_about_as_many_each(tmp_path: Path) -> None:
    one_file(tmp_path)
    (share, *others) = share_out(find_files(tmp_path), 4)
    size = (tmp_path / "a.jsonl").stat().st_size
    ranges = [(file.start, file.stop or size) for part in (share, *others) for file in part]  # type: ignore[attr-defined]
    assert ranges[0][0] == 0
    assert [stop for _, stop in ranges[:-1]] == [start for start, _ in ranges[1:]]
    assert all(size / 6 < stop - start < size / 2.5 for start, stop in ranges)
    text = (tmp_path / "a.jsonl").read_bytes()
    assert all(text[start : start + 1] == b"{" for start, _ in ranges)


@pytest.mark.parametrize("beside", [{"rows": 5}, {"drop_duplicates": True}, {"function": "a:b"}])
def test_what_needs_all_rows_in_one_process_is_refused(beside: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"convert.shards has no place beside convert.{next(iter(beside))}"):
        config(2, **beside)
