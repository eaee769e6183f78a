#!/usr/bin/env bash
# duckdb: if one message of a file has a list as its content, all contents come with quotes around them, and \n as two characters.
#
# Versions: duckdb 2.0.1, pyarrow 25.0.1
# Guess:    a field that is text in some rows and a list or number in others is an error, or text: Hi stays Hi.
# Seen:     read_json gives such a field the type JSON, whose values are JSON text in Python, in Arrow and in parquet: the message Hi is "Hi" with
#           its quotes, a line break is a backslash and an n. One number among the answers does it as well. Other rows than the first 20,480 do not
#           count for the type: a field that is text there stays text, and a list that comes later is JSON text in it. Nothing is said.
# Effect:   one row with an image or with parts, and a model is trained to write quotes and backslashes. Name the types (columns=), or look at
#           typeof. Talaria reads JSON with polars and keeps parts as parts.
source "$(dirname "$0")/install.sh" duckdb==2.0.1 pyarrow==25.0.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import json

import duckdb
import pyarrow.parquet as pq

TEXT = 'Say "hi"\nand go'
PARTS = [{"type": "text", "text": "Look"}]


def read(name, *contents):
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps({"messages": [{"role": "user", "content": content}]}) + "\n" for content in contents)
    found = duckdb.sql("SELECT messages[1].content AS content FROM read_json('rows.jsonl')")
    values = [content for (content,) in found.fetchall()]
    print(f"{name}: {found.types[0]}: {values[0]}")
    return values


assert read("text alone", TEXT) == [TEXT]
assert read("text, and a message of parts", TEXT, PARTS)[0] == '"Say \\"hi\\"\\nand go"'
duckdb.sql("COPY (SELECT messages[1].content AS content FROM read_json('rows.jsonl')) TO 'rows.parquet'")
kept = pq.read_table("rows.parquet")["content"].to_pylist()[0]
print("in parquet:", kept)
assert kept == '"Say \\"hi\\"\\nand go"'
assert read("text, and a number", TEXT, 42) == ['"Say \\"hi\\"\\nand go"', "42"]
late = read("text, and parts after 30,000 rows", *[TEXT] * 30_000, PARTS)
assert (late[0], json.loads(late[-1])) == (TEXT, PARTS)
PY
