#!/usr/bin/env bash
# datasets and pyarrow: answers that are dates stop being text.
#
# Versions: datasets 5.2.0, pyarrow 25.0.1, polars 2.1.0
# Guess:    a JSON text is read as text.
# Seen:     where every value of a column or of a message field looks like an ISO date, load_dataset("json") and pyarrow.json make timestamps
#           of it: "1969-07-20" comes back as datetime(1969, 7, 20, 0, 0), whose text is "1969-07-20 00:00:00". One value that is no date in
#           the same file keeps all of them text, so the same row changes with its neighbours. polars reads text.
#           Telling load_dataset that they are strings (`features=`) is too late: "1969-07-20 00:00:00" is what the string says then.
# Effect:   a model trained on what was read learns to answer with a time that nobody wrote. Give pyarrow the schema, or read with polars.
source "$(dirname "$0")/install.sh" datasets==5.2.0 pyarrow==25.0.1 polars==2.1.0
py - <<'PY'
import datetime, json
import polars as pl, pyarrow as pa, pyarrow.json as pj
from datasets import Features, Value, disable_progress_bars, load_dataset

disable_progress_bars()


def write(name, answers):
    rows = ({"messages": [{"role": "assistant", "content": answer}], "answer": answer} for answer in answers)
    open(name, "w").write("".join(json.dumps(row) + "\n" for row in rows))


def loaded(name, **how):
    return load_dataset("json", data_files=name, split="train", cache_dir="cache", **how)[0]


write("dates.jsonl", ["1969-07-20", "1971-02-05"])
write("mixed.jsonl", ["1969-07-20", "in summer"])
moon = datetime.datetime(1969, 7, 20)
print("datasets:", loaded("dates.jsonl"))
print("pyarrow: ", pj.read_json("dates.jsonl").to_pylist()[0])
print("polars:  ", pl.read_ndjson("dates.jsonl").to_dicts()[0])
print("datasets, beside another answer:", loaded("mixed.jsonl"))
for row in (loaded("dates.jsonl"), pj.read_json("dates.jsonl").to_pylist()[0]):
    assert row["answer"] == row["messages"][0]["content"] == moon, row
for row in (loaded("mixed.jsonl"), pl.read_ndjson("dates.jsonl").to_dicts()[0]):
    assert row["answer"] == row["messages"][0]["content"] == "1969-07-20", row
told = Features({"messages": [{"role": Value("string"), "content": Value("string")}], "answer": Value("string")})
print("datasets, told that they are strings:", loaded("dates.jsonl", features=told))
assert loaded("dates.jsonl", features=told)["answer"] == "1969-07-20 00:00:00"
schema = pa.schema([("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))), ("answer", pa.string())])
read = pj.read_json("dates.jsonl", parse_options=pj.ParseOptions(explicit_schema=schema)).to_pylist()[0]
print("pyarrow, told that they are strings: ", read)
assert read["answer"] == read["messages"][0]["content"] == "1969-07-20"
PY
