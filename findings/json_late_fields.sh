#!/usr/bin/env bash
# polars: what first comes after the hundredth line of a JSON Lines file is not read: columns, and fields of messages.
#
# Versions: polars 2.1.0; beside it pyarrow 25.0.1, datasets 5.2.0, duckdb 2.0.1
# Guess:    a reader that infers a schema from the first lines raises an error where a later line does not fit, as duckdb does.
# Seen:     pl.read_ndjson and pl.scan_ndjson leave the column `tools` and the field `reasoning` of the messages out, without a word, though
#           ignore_errors is False. pyarrow and datasets keep them; duckdb names the line. With infer_schema_length=None polars keeps them.
# Effect:   in a file that begins with plain chats and goes on with tool calls, all calls are gone after a preparation by polars. Talaria reads
#           JSON Lines by itself; where you prepare a file with polars, pass infer_schema_length=None.
source "$(dirname "$0")/install.sh" polars==2.1.0 pyarrow==25.0.1 datasets==5.2.0 duckdb==2.0.1
py - <<'PY'
import json

import datasets
import duckdb
import polars as pl
import pyarrow.json

ROWS = 50_000
with open("chats.jsonl", "w") as file:
    for number in range(ROWS):
        answer = {"role": "assistant", "content": "yes"}
        row = {"id": number, "messages": [{"role": "user", "content": "hi"}, answer]}
        if number >= ROWS * 3 // 5:
            answer["reasoning"] = "because"
            row["tools"] = ["clock"]
        file.write(json.dumps(row) + "\n")

def kept(row):
    """Whether the last row has its late column, and its last message the late field."""
    return row.get("tools") == ["clock"], row["messages"][-1].get("reasoning") == "because"

datasets.disable_progress_bars()
seen = {
    "polars.read_ndjson": kept(pl.read_ndjson("chats.jsonl").row(-1, named=True)),
    "polars.scan_ndjson": kept(pl.scan_ndjson("chats.jsonl").tail(1).collect().row(-1, named=True)),
    "polars, infer_schema_length=None": kept(pl.read_ndjson("chats.jsonl", infer_schema_length=None).row(-1, named=True)),
    "pyarrow": kept(pyarrow.json.read_json("chats.jsonl").slice(ROWS - 1).to_pylist()[0]),
    "datasets": kept(datasets.load_dataset("json", data_files="chats.jsonl", split="train", cache_dir="cache")[-1]),
}
try:
    duckdb.sql("SELECT * FROM 'chats.jsonl'").fetchall()
    seen["duckdb"] = "no error"
except duckdb.InvalidInputException as error:
    seen["duckdb"] = str(error).split(": Object")[0]
for reader, found in seen.items():
    print(f"{reader}: {found}")
assert seen["polars.read_ndjson"] == seen["polars.scan_ndjson"] == (False, False)
assert seen["polars, infer_schema_length=None"] == seen["pyarrow"] == seen["datasets"] == (True, True)
assert "in line" in seen["duckdb"]
PY
