#!/usr/bin/env bash
# datasets: take(n) and skip(n) of a streamed data set are other rows in a DataLoader with workers, so that held-out rows are trained.
#
# Versions: datasets 5.2.0, torch 2.13.0 (CPU)
# Guess:    take(4) are the first four rows and skip(4) all others, however they are read.
# Seen:     with workers the shards are given out first, and each worker takes or skips its part of the four: of two shards of five rows,
#           skip(4) with two workers leaves out rows 0, 1, 5 and 6. Read without workers take(4) is rows 0 to 3: rows 2 and 3 are in both,
#           and 5 and 6 in neither.
# Effect:   a validation set by take() that is read in the main process, or with another number of workers than the training by skip(), is in part
#           trained. Split by a rule on the content, as Talaria does, or by files.
source "$(dirname "$0")/install.sh" datasets==5.2.0 torch==2.13.0
cat > run.py <<'PY'
import datasets
from torch.utils.data import DataLoader

rows = datasets.Dataset.from_dict({"row": list(range(10))}).to_iterable_dataset(num_shards=2)


def read(part, workers):
    return sorted(int(row["row"]) for row in DataLoader(part, batch_size=None, num_workers=workers))


if __name__ == "__main__":
    for workers in (0, 1, 2):
        print(f"{workers} workers: take(4) {read(rows.take(4), workers)}, skip(4) {read(rows.skip(4), workers)}")
    for workers in (0, 1):
        assert (read(rows.take(4), workers), read(rows.skip(4), workers)) == ([0, 1, 2, 3], [4, 5, 6, 7, 8, 9])
    assert (read(rows.take(4), 2), read(rows.skip(4), 2)) == ([0, 1, 5, 6], [2, 3, 4, 7, 8, 9])
    print("held out without workers and trained with two:", sorted({*read(rows.take(4), 0)} & {*read(rows.skip(4), 2)}))
PY
py run.py 2>log.txt || { tail -5 log.txt; exit 1; }
