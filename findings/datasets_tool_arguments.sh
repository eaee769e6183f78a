#!/usr/bin/env bash
# datasets: the same tool calls have invented null arguments by one constructor and not by another.
#
# Versions: datasets 5.2.0, pyarrow 25.0.1
# Guess:    Dataset.from_list and load_dataset("json") give the same rows for the same objects.
# Seen:     from_list makes one struct of all arguments that occur anywhere: f(x=1) and g(y="s") become f(x=1, y=None) and
#           g(x=None, y="s"). load_dataset("json") types the turns as Json and returns the objects as they were. If two calls give one
#           argument different types, from_list raises ArrowInvalid and load_dataset reads the file.
# Effect:   a chat template that writes `arguments | tojson` trains the model to pass nulls for every tool's arguments. Keep arguments
#           as JSON text, or read the rows from a file.
source "$(dirname "$0")/install.sh" datasets==5.2.0 pyarrow==25.0.1
py - <<'PY'
import json
import pyarrow as pa
from datasets import Dataset, disable_progress_bars, load_dataset

disable_progress_bars()

def row(*calls):
    return {"messages": [{"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments} for name, arguments in calls]}]}

def arguments(data):
    return [call["arguments"] for rows in data["messages"] for turn in rows for call in turn["tool_calls"]]

def from_file(rows):
    open("rows.jsonl", "w").write("".join(json.dumps(row) + "\n" for row in rows))
    return load_dataset("json", data_files="rows.jsonl", cache_dir="cache", download_mode="force_redownload")["train"]

rows = [row(("f", {"x": 1}), ("g", {"y": "s"}))]
print("from_list:", arguments(Dataset.from_list(rows)))
print("load_dataset:", arguments(from_file(rows)))
assert arguments(Dataset.from_list(rows)) == [{"x": 1, "y": None}, {"x": None, "y": "s"}]
assert arguments(from_file(rows)) == [{"x": 1}, {"y": "s"}]

mixed = [row(("f", {"x": 1})), row(("f", {"x": "one"}))]
assert arguments(from_file(mixed)) == [{"x": 1}, {"x": "one"}]
try:
    Dataset.from_list(mixed)
except pa.ArrowInvalid as error:
    print("from_list, two types:", error)
else:
    raise SystemExit("from_list takes two types now")
PY
