#!/usr/bin/env bash
# datasets: one file called unit-test.jsonl, and the rest of the folder is not read.
#
# Versions: datasets 5.2.0
# Guess:    load_dataset on a folder without splits reads all of its files as "train".
# Seen:     as soon as one file's name has test, eval, dev, val or train as a part of it, only such files are read, without a word: of
#           math.jsonl, code.jsonl and unit-test.jsonl only the last, as the split "test". A folder called "evaluation" does the same.
#           `split="train"` raises an error then, unless a name such as "sleep-training.jsonl" makes a split "train" of itself alone.
# Effect:   of a folder of chats by topic, one topic is trained. Name the files: data_files={"train": "*.jsonl"}.
source "$(dirname "$0")/install.sh" datasets==5.2.0
py - <<'PY'
import json
import os

from datasets import disable_progress_bars, load_dataset

disable_progress_bars()


def rows(*names, **how):
    """How many rows each split has where every file has 10."""
    folder = "-and-".join(name.replace("/", "_").split(".")[0] for name in names)
    for name in names:
        os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        with open(f"{folder}/{name}", "w") as file:
            file.writelines(json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(10))
    found = {split: len(part) for split, part in load_dataset(folder, cache_dir="cache", **how).items()}
    print(", ".join(names), how or "", "->", found)
    return found


assert rows("math.jsonl", "code.jsonl", "unit-tests.jsonl") == {"train": 30}
assert rows("math.jsonl", "code.jsonl", "unit-test.jsonl") == {"test": 10}
assert rows("math.jsonl", "code.jsonl", "sleep-training.jsonl") == {"train": 10}
assert rows("math.jsonl", "code.jsonl", "evaluation/chats.jsonl") == {"test": 10}
assert rows("math.jsonl", "code.jsonl", "dev-ops.jsonl") == {"validation": 10}
assert rows("maths.jsonl", "code.jsonl", "unit-test.jsonl", data_files={"train": "*.jsonl"}) == {"train": 30}
PY
