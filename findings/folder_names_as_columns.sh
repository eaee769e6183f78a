#!/usr/bin/env bash
# polars and duckdb: a folder called seed=1 replaces the column "seed" of the parquet files in it.
#
# Versions: polars 2.1.0, duckdb 2.0.1; beside them pyarrow 25.0.1
# Guess:    a column that is in the file is read from the file; a folder's name adds one at most.
# Seen:     duckdb gives seed = 1 for all rows of 'sweep/seed=1/rows.parquet', one file named in full, though the file says 5 and 6. polars
#           does so where it is given the folder 'sweep', and not for 'sweep/*/rows.parquet', the same files. pyarrow raises an error for the
#           folder and reads the file's own column otherwise.
# Effect:   sweeps keep results in folders such as lr=0.001/seed=1: columns of these names (a seed, a source, a step) are overwritten without
#           a word. Pass hive_partitioning=False.
source "$(dirname "$0")/install.sh" polars==2.1.0 duckdb==2.0.1 pyarrow==25.0.1
py - <<'PY'
import os

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

os.makedirs("sweep/seed=1")
pq.write_table(pa.table({"text": ["a", "b"], "seed": [5, 6]}), "sweep/seed=1/rows.parquet")


def read(how, what, seeds):
    print(f"{how}: {seeds}")
    assert seeds == what, seeds


def rejected(path):
    try:
        return pq.read_table(path)["seed"].to_pylist()
    except pa.ArrowTypeError as error:
        return str(error).split(":")[0]


FILE, FOLDED = [5, 6], [1, 1]
read("duckdb, the file", FOLDED, [row[0] for row in duckdb.sql("SELECT seed FROM 'sweep/seed=1/rows.parquet'").fetchall()])
plain = "SELECT seed FROM read_parquet('sweep/seed=1/rows.parquet', hive_partitioning=false)"
read("duckdb, hive_partitioning=false", FILE, [row[0] for row in duckdb.sql(plain).fetchall()])
read("polars, the folder", FOLDED, pl.read_parquet("sweep")["seed"].to_list())
read("polars, the folder, hive_partitioning=False", FILE, pl.read_parquet("sweep", hive_partitioning=False)["seed"].to_list())
read("polars, a pattern for the same file", FILE, pl.read_parquet("sweep/*/rows.parquet")["seed"].to_list())
read("pyarrow, the folder", "Unable to merge", rejected("sweep"))
read("pyarrow, the file", FILE, rejected("sweep/seed=1/rows.parquet"))
PY
