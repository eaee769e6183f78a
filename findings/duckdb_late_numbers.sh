#!/usr/bin/env bash
# duckdb: a score of 0.7 that comes after 20,480 whole numbers in a JSON file is read as 1, a count of 5 after booleans as true.
#
# Versions: duckdb 2.0.1
# Guess:    a value that does not fit the type guessed from the first rows is an error, as text in a column of numbers is one.
# Seen:     read_json guesses from 20,480 rows and casts the rest: 0.7 becomes 1 and 2.4 becomes 2 in a column of whole numbers, 5 becomes true in
#           one of booleans. Text there does raise an error, and so does a column that first comes later. sample_size=-1 looks at all rows.
# Effect:   scores, weights and rewards are rounded by where they stand in the file, so that a filter keeps other rows than for the same rows
#           in another order. Pass sample_size=-1 or columns=. Talaria looks at all rows.
source "$(dirname "$0")/install.sh" duckdb==2.0.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import json

import duckdb


def read(rows, options=""):
    with open("rows.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found = duckdb.sql(f"FROM read_json('rows.jsonl'{options})")
    values = found.fetchall()
    print(f"{rows[0]} {len(rows) - 1:,} times, then {rows[-1]}: {dict(zip(found.columns, found.types))}, last {values[-1]}{options}")
    return found.columns, values[-1]


for late, seen in ((0.7, 1), (0.4, 0), (2.4, 2)):
    rows = [{"score": 1}] * 20_480 + [{"score": late}]
    assert read(rows) == (["score"], (seen,))
    assert read(rows[1:]) == (["score"], (late,))
    assert read(rows, ", sample_size=-1") == (["score"], (late,))
flags = read([{"flag": True}] * 20_480 + [{"flag": 5}])
assert flags == (["flag"], (True,))
try:
    read([{"score": 1}] * 20_480 + [{"score": "high"}])
    raise SystemExit("text is read by now")
except duckdb.InvalidInputException as error:
    print("text:", str(error)[:90])
PY
