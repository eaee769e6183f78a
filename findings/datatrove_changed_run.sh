#!/usr/bin/env bash
# datatrove: a run that is started again with more tasks writes rows twice and leaves others out; with a changed filter it does nothing.
#
# Versions: datatrove 0.10.1
# Guess:    a run that was finished is skipped if it is the same; with another filter, output folder, input file or number of tasks it runs, or
#           stops with an error.
# Seen:     what is done is known by the task's number alone, in logging_dir. A changed filter or output folder, or a new input file, is skipped
#           with "all 1 tasks have already been completed". With tasks=2 the first task is skipped, and the second writes its half of the files
#           to a second output file, beside the first file that holds all: rows "b" and "d" come twice, the new "e" never.
# Effect:   a corpus that was made larger, or finished on a larger machine, has duplicates and gaps, and each run says success. A new logging_dir and
#           output folder for each change; count the ids. Talaria's outputs have keys of their settings and inputs.
source "$(dirname "$0")/install.sh" "datatrove[io,processing]==0.10.1"
cat > run.py <<'PY'
import gzip
import json
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import LambdaFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def add(*names):
    Path("rows").mkdir(exist_ok=True)
    for name in names:
        Path(f"rows/{name}.jsonl").write_text(json.dumps({"id": name, "text": f"text {name}"}) + "\n")


def everything(document):
    return True


def nothing(document):
    return False


def run(name, tasks=1, keep=everything, output="output"):
    """The ids in each output file after the run."""
    steps = [JsonlReader("rows"), LambdaFilter(keep), JsonlWriter(output)]
    LocalPipelineExecutor(pipeline=steps, tasks=tasks, workers=1, logging_dir="logs").run()
    files = sorted(Path(output).glob("*.gz"))
    found = [[json.loads(line)["id"] for line in gzip.open(file, "rt")] for file in files]
    print(f"{name}: {found}")
    return found


if __name__ == "__main__":
    add("a", "b", "c", "d")
    assert run("the first run") == [["a", "b", "c", "d"]]
    assert run("a filter that keeps nothing", keep=nothing) == [["a", "b", "c", "d"]]
    assert run("another output folder", output="other") == []
    add("e")
    assert run("with a new file e") == [["a", "b", "c", "d"]]
    assert run("with two tasks", tasks=2) == [["a", "b", "c", "d"], ["b", "d"]]
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
