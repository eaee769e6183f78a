#!/usr/bin/env bash
# datasets: one id above 2^63 in a JSON Lines file changes the ids of all other rows.
#
# Versions: datasets 5.2.0, pyarrow 25.0.1
# Guess:    the column becomes uint64 or text, or loading stops.
# Seen:     the whole column becomes float64. 9007199254740993 is read as 9007199254740992.0, and two different ids of 17 digits
#           become equal. There is no warning. A file without the large id is read exactly, as int64.
# Effect:   ids are no longer unique, and joins and de-duplication by id merge rows. Declare the column as text (`Features`), or quote ids.
source "$(dirname "$0")/install.sh" datasets==5.2.0 pyarrow==25.0.1
py - <<'PY'
import warnings
from pathlib import Path
from datasets import disable_progress_bars, load_dataset

warnings.simplefilter("error")
disable_progress_bars()
small, large = [9007199254740992, 9007199254740993], 2**63

def read(name, ids):
    Path(name).write_text("".join(f'{{"id": {i}}}\n' for i in ids))
    column = load_dataset("json", data_files=name, cache_dir="cache")["train"]
    print(name, column.features["id"], column["id"][:])
    return column["id"][:]

assert read("without.jsonl", small) == small
found = read("with.jsonl", [*small, large])
assert all(isinstance(value, float) for value in found)
assert found[0] == found[1] == 9007199254740992.0
PY
