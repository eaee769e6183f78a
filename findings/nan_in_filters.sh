#!/usr/bin/env bash
# polars and duckdb: rows whose score is NaN pass the filter `score > 0.5`; in duckdb it depends on the other rows.
#
# Versions: polars 2.1.0, duckdb 2.0.1, pylance 14.0.2, pyarrow 25.0.1, pandas 3.0.0
# Guess:    a comparison with NaN is false, as in Python, numpy, pandas and pyarrow.
# Seen:     polars, duckdb and lance order NaN above all numbers: `score > 0.5` keeps such rows, `score <= 1` drops them. polars' own max()
#           leaves NaN out all the same. duckdb reads the statistics of a parquet file, which leave NaN out: of one file `score > 0.5` gives
#           the NaN row and `score > 0.95` gives no row, while of the same rows in a table it gives it.
# Effect:   rows whose judge or reward model failed are those that a filter for good data keeps. Write
#           `(score > 0.5) & score.is_not_nan()`, or store a missing score as null.
source "$(dirname "$0")/install.sh" polars==2.1.0 duckdb==2.0.1 pylance==14.0.2 pyarrow==25.0.1 pandas==3.0.0
py - <<'PY'
import math
import duckdb, lance
import polars as pl
import pyarrow.parquet as pq

scores = pl.DataFrame({"row": ["low", "nan", "high"], "score": [0.1, math.nan, 0.9]})
scores.write_parquet("scores.parquet")
assert pq.ParquetFile("scores.parquet").metadata.row_group(0).column(1).statistics.max == 0.9
table = scores.to_arrow()
lance.write_dataset(table, "scores.lance")
sql = lambda source, condition: [row for (row,) in duckdb.sql(f"SELECT row FROM {source} WHERE {condition}").fetchall()]
for engine, rows in {
    "polars": scores.filter(pl.col("score") > 0.5)["row"].to_list(),
    "polars, of a file": pl.scan_parquet("scores.parquet").filter(pl.col("score") > 0.5).collect()["row"].to_list(),
    "duckdb": sql("'scores.parquet'", "score > 0.5"),
    "lance": lance.dataset("scores.lance").to_table(filter="score > 0.5")["row"].to_pylist(),
    "pyarrow": pq.read_table("scores.parquet", filters=[("score", ">", 0.5)])["row"].to_pylist(),
    "pandas": scores.to_pandas().query("score > 0.5")["row"].tolist(),
}.items():
    print(f"score > 0.5, {engine}: {rows}")
    assert rows == (["high"] if engine in ("pyarrow", "pandas") else ["nan", "high"])
below = scores.filter(pl.col("score") <= 1)["row"].to_list()
print("score <= 1, polars:", below, "and max()", scores["score"].max())
assert below == ["low", "high"] and scores["score"].max() == 0.9
print("score > 0.95, duckdb of the file:", sql("'scores.parquet'", "score > 0.95"), "and of a table:", sql("scores", "score > 0.95"))
assert sql("'scores.parquet'", "score > 0.95") == [] and sql("scores", "score > 0.95") == ["nan"]
PY
