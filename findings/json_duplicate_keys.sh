#!/usr/bin/env bash
# JSON Lines with a key given twice in one object: six readers, three answers.
#
# Versions: Python's json, pyarrow 25.0.1, polars 2.1.0, duckdb 2.0.1, datasets 5.2.0, orjson 3.11.9
# Guess:    the last value counts, as in Python and JavaScript; or all refuse.
# Seen:     for {"role": "user", "role": "assistant"} json and orjson give assistant, polars gives user, and pyarrow, DuckDB and
#           datasets raise an error.
# Effect:   a row that a script checks with json can have another role once polars reads it. Check rows with the reader that trains.
source "$(dirname "$0")/install.sh" polars==2.1.0 pyarrow==25.0.1 datasets==5.2.0 duckdb==2.0.1 orjson==3.11.9
py - <<'PY'
import json
import duckdb, orjson, polars as pl, pyarrow.json
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
line = '{"role": "user", "role": "assistant"}\n'
open("rows.jsonl", "w").write(line)
readers = {
    "json": lambda: json.loads(line)["role"],
    "orjson": lambda: orjson.loads(line)["role"],
    "polars": lambda: pl.read_ndjson("rows.jsonl")["role"][0],
    "pyarrow": lambda: pyarrow.json.read_json("rows.jsonl")["role"][0].as_py(),
    "duckdb": lambda: duckdb.sql("select role from 'rows.jsonl'").fetchall()[0][0],
    "datasets": lambda: load_dataset("json", data_files="rows.jsonl", cache_dir="cache")["train"][0]["role"],
}
found = {}
for name, read in readers.items():
    try:
        found[name] = read()
    except Exception as error:
        found[name] = type(error).__name__
    print(f"{name}: {found[name]}")
assert found == {
    "json": "assistant", "orjson": "assistant", "polars": "user",
    "pyarrow": "ArrowInvalid", "duckdb": "InvalidInputException", "datasets": "DatasetGenerationError",
}
PY
