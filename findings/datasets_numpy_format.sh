#!/usr/bin/env bash
# datasets: in numpy's format a column of integers with one null has 24 bits, so that ids are others; so has each column of doubles.
#
# Versions: datasets 5.2.0, numpy 2.4.6
# Guess:    with_format("numpy") gives the column's own type, int64 or float64; integers with a null become float64, as in pandas, which is exact to
#           2**53.
# Seen:     float64 columns are float32, and integers with a null are float32 too: 16,777,217 reads 16,777,216, and a time of 1,700,000,000.5 s
#           1,700,000,000. In lists of token ids or weights it is the same. A map over batches writes the rounded values back. Without a null
#           integers are exact; one row alone is a float64.
# Effect:   a join on ids that have a gap somewhere finds other rows, and small differences of times and probabilities are 0. Pass
#           dtype="float64" to with_format, or use polars. Talaria reads Arrow's columns themselves.
source "$(dirname "$0")/install.sh" datasets==5.2.0 numpy==2.4.6
HF_DATASETS_DISABLE_PROGRESS_BARS=1 py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import numpy as np
from datasets import Dataset

ID, SECONDS = 2**24 + 1, 1_700_000_000.5
whole = Dataset.from_dict({"id": [ID, 3], "seconds": [SECONDS, 0.5]}).with_format("numpy")
gaps = Dataset.from_dict({"id": [ID, None], "ids": [[ID, None], [1, 2]]}).with_format("numpy")
print("no null:", whole[:], "- with a null:", gaps[:])
assert whole["id"][:].tolist() == [ID, 3]
assert whole["seconds"][:].dtype == np.float32 and whole["seconds"][:][0] == 1_700_000_000
assert gaps["id"][:].dtype == np.float32 and gaps["id"][:][0] == ID - 1
assert gaps["ids"][:].dtype == np.float32 and gaps["ids"][:][0][0] == ID - 1
written = gaps.map(lambda batch: {"copy": batch["id"]}, batched=True, remove_columns="ids").with_format(None)
print("copied by a map over batches:", written[:])
assert written["copy"][0] == ID - 1 and written["id"][0] == ID
exact = gaps.with_format("numpy", dtype="float64")["id"][:]
print('with dtype="float64":', exact)
assert exact[0] == ID
PY
