#!/usr/bin/env bash
# pyarrow: rows that go through write_dataset are read back in another order, with preserve_order=True too.
#
# Versions: pyarrow 25.0.1, polars 2.1.0, duckdb 2.0.1, numpy 2.4.6
# Guess:    write_dataset keeps the order of rows, at least with preserve_order=True, and reading the folder gives it back.
# Seen:     a folder of files that is copied by write_dataset has its rows in an order that differs from run to run, since several threads read.
#           With preserve_order=True the files are in order, but are called part-0 to part-14, and a folder is read by name: part-10 comes after
#           part-1, in pyarrow, polars and duckdb. A table that fits into ten files is not touched by this.
# Effect:   labels, losses or row numbers that are joined by position belong to other rows once a corpus has more than ten files. Write a row number,
#           or the files yourself with names of one length, as Talaria does (data-00000-of-00015).
source "$(dirname "$0")/install.sh" pyarrow==25.0.1 polars==2.1.0 duckdb==2.0.1 numpy==2.4.6
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import os

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

ROWS = pa.table({"row": np.arange(300_000)})
os.mkdir("source")
for number in range(15):
    pq.write_table(ROWS.slice(number * 20_000, 20_000), f"source/{number:05}.parquet")
assert ds.dataset("source").to_table() == ROWS


def back(folder):
    """The first row of each stretch that is in order."""
    rows = ds.dataset(folder).to_table()["row"].to_numpy()
    assert sorted(rows.tolist()) == ROWS["row"].to_pylist()
    assert pl.read_parquet(f"{folder}/*.parquet")["row"].to_list() == rows.tolist()
    assert [row for (row,) in duckdb.sql(f"FROM '{folder}/*.parquet'").fetchall()] == rows.tolist()
    return [int(row) for row in rows[np.flatnonzero(np.diff(rows, prepend=-2) != 1)]]


copies = []
for number in range(5):
    ds.write_dataset(ds.dataset("source"), f"copy{number}", format="parquet")
    copies.append(back(f"copy{number}"))
    print("a copy of the folder, stretches begin at:", copies[-1])
assert any(len(copy) > 1 for copy in copies)
files = {"format": "parquet", "max_rows_per_file": 20_000, "max_rows_per_group": 20_000}
ds.write_dataset(ds.dataset("source"), "kept", preserve_order=True, **files)
print("with preserve_order, stretches begin at:", back("kept"), "- the first files:", sorted(os.listdir("kept"))[:4])
assert back("kept") == [0, 200_000, 40_000]
ds.write_dataset(ds.dataset("source"), "few", format="parquet", preserve_order=True)
assert back("few") == [0]
PY
