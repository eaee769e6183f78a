#!/usr/bin/env bash
# datasets: the same numbers have fewer digits in a JSON array than in JSON Lines.
#
# Versions: datasets 5.2.0, pandas 3.1.1
# Guess:    whether a file is one array or one object a line does not change its values.
# Seen:     an array is first written as lines again, with 10 digits after the point: 1e-12 becomes 0.0 and 3.141592653589793
#           3.1415926536. The same happens to JSON Lines as soon as any column of the file has values of two types, to all other columns;
#           `features=` does not help.
# Effect:   probabilities, learning rates and weights of rows below 5e-11 are 0, and scores that differ late are equal. pyarrow, polars and
#           Python's json read all digits.
source "$(dirname "$0")/install.sh" datasets==5.2.0 pandas==3.1.1
py - <<'PY'
import json

from datasets import Features, Value, disable_progress_bars, load_dataset

disable_progress_bars()
ROWS = [{"p": 1e-12, "score": 3.141592653589793}, {"p": 0.25, "score": 1 / 3}]


def read(name, rows, lines, **how):
    with open(name, "w") as file:
        file.write("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    found = load_dataset("json", data_files=name, split="train", cache_dir="cache", **how)[0]
    print(f"{name}: p {found['p']!r}, score {found['score']!r}")
    return found["p"], found["score"]


mixed = [row | {"id": id} for row, id in zip(ROWS, (7, "seven"), strict=True)]
exact, cut = (1e-12, 3.141592653589793), (0.0, 3.1415926536)
assert read("lines.jsonl", ROWS, True) == exact
assert read("array.json", ROWS, False) == cut
assert read("two_types.jsonl", mixed, True) == cut
assert read("told.json", ROWS, False, features=Features({"p": Value("float64"), "score": Value("float64")})) == cut
PY
