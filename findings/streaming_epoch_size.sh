#!/usr/bin/env bash
# mosaicml-streaming: epoch_size=10 without shuffling reads ten other rows at each epoch.
#
# Versions: mosaicml-streaming 0.13.0, torch 2.14.1 (CPU)
# Guess:    StreamingDataset(epoch_size=10, shuffle=False) reads the first ten rows, each time, and len() is the number of rows that come.
# Seen:     ten rows are drawn at random, others at each epoch, and given in the order of the files. Stream(choose=10) does the same. With two
#           canonical nodes and an odd number of rows one more comes than len() says, since one row comes twice.
# Effect:   an evaluation of "the first 500 rows" measures other rows each time, and its curve moves without the model. Write the rows of an
#           evaluation to a folder of their own.
source "$(dirname "$0")/install.sh" mosaicml-streaming==0.13.0 torch==2.14.1 torchvision==0.29.1
export TMPDIR="$work"
cat > run.py <<'PY'
from streaming import MDSWriter, Stream, StreamingDataset

with MDSWriter(out="rows", columns={"row": "int"}) as writer:
    for row in range(23):
        writer.write({"row": row})


def epochs(**how):
    data = StreamingDataset(batch_size=1, shuffle=False, **how)
    return len(data), [sample["row"] for sample in data], [sample["row"] for sample in data]


if __name__ == "__main__":
    length, first, second = epochs(local="rows")
    assert (length, first, second) == (23, list(range(23)), list(range(23)))
    for name, how in {"epoch_size=10": {"local": "rows", "epoch_size": 10}, "choose=10": {"streams": [Stream(local="rows", choose=10)]}}.items():
        length, first, second = epochs(**how)
        print(f"{name}: {first}, then {second}")
        assert length == len(set(first)) == len(set(second)) == 10
        assert first != list(range(10)) and first != second and first == sorted(first)
    length, first, _ = epochs(local="rows", num_canonical_nodes=2)
    print(f"two canonical nodes: len() {length}, rows {len(first)}, of them {len(set(first))} different")
    assert (length, len(first), len(set(first))) == (23, 24, 23) or (length, len(first)) == (23, 24)
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
