#!/usr/bin/env bash
# datasets: map turns "007" into 7 and a count of 5 into True, and drops a column that the first row does not have.
#
# Versions: datasets 5.2.0
# Guess:    what the function returns is stored, or an error says that it does not fit the column; a row without a key has null there.
# Seen:     values are first cast to the type that the column had, or that the first rows gave: text whose every value reads as a number
#           becomes integers in a column of integers ("007" is 7), and numbers or "false" become booleans in a column of booleans. One text
#           that is no number keeps all of them. A key that the first row's result lacks is left out of all rows, without a word.
# Effect:   answers lose their zeros by what other rows say, a flag that is replaced by a count stays a flag, and an error column or a tool call
#           of later rows is gone. Write new columns under new names, return all keys in each row, pass features=. Talaria converts with polars.
source "$(dirname "$0")/install.sh" datasets==5.2.0
HF_DATASETS_DISABLE_PROGRESS_BARS=1 py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
from datasets import Dataset, Features, Value

rows = Dataset.from_dict({"row": [1, 2, 3], "answer": [5, 6, 7], "flag": [True, False, False]})


def mapped(name, function, **settings):
    found = rows.map(function, **settings)
    print(f"{name}: {found[:]}")
    return found[:]


assert mapped('answers are "001" to "003"', lambda row: {"answer": f"00{row['row']}"})["answer"] == [1, 2, 3]
words = mapped('one is "none"', lambda row: {"answer": f"00{row['row']}" if row["row"] < 3 else "none"})
assert words["answer"] == ["001", "002", "none"]
assert mapped("a new column, 1 and then texts", lambda row: {"new": "007" if row["row"] > 1 else 1})["new"] == [1, 7, 7]
assert mapped("the flag is a count of 5", lambda row: {"flag": 5})["flag"] == [True, True, True]
assert mapped('the flag is the text "false"', lambda row: {"flag": "false"})["flag"] == [False, False, False]
late = mapped("an error from row 2 on", lambda row: {"error": "too long"} if row["row"] > 1 else {})
assert list(late) == ["row", "answer", "flag"]
typed = Features({**rows.features, "answer": Value("string")})
assert mapped("with features", lambda row: {"answer": f"00{row['row']}"}, features=typed)["answer"] == ["001", "002", "003"]
PY
