#!/usr/bin/env bash
# polars: a parquet file with one whole number above 2^63 cannot be opened by pyarrow or datasets, and DuckDB reads bytes.
#
# Versions: polars 2.1.0, pyarrow 25.0.1, datasets 5.2.0, duckdb 2.0.1
# Guess:    Int128 is stored as decimal128, which all of them know; or polars refuses to write it.
# Seen:     polars.read_ndjson infers Int128 for an id of 20 digits without a word, and write_parquet stores it as fixed-length bytes
#           with an Arrow schema that only polars understands. pyarrow raises ArrowNotImplementedError ("Integers with more than 64 bits
#           not implemented") on the schema alone, so the other columns are lost too; so does datasets. DuckDB opens the file and
#           returns a BLOB of 16 little-endian bytes.
# Effect:   cast such columns before writing (`pl.col("id").cast(pl.String)` or `pl.Decimal(38, 0)`), or read the file with polars.
source "$(dirname "$0")/install.sh" polars==2.1.0 pyarrow==25.0.1 datasets==5.2.0 duckdb==2.0.1
py - <<'PY'
import duckdb, polars as pl, pyarrow as pa, pyarrow.parquet as pq
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
ids = [12345678901234567890, 1]
open("rows.jsonl", "w").write("".join(f'{{"id": {i}, "text": "hello"}}\n' for i in ids))
rows = pl.read_ndjson("rows.jsonl")
print("polars reads the JSON as", rows.schema)
assert rows.schema["id"] == pl.Int128
rows.write_parquet("rows.parquet")
assert pl.read_parquet("rows.parquet")["id"].to_list() == ids

for name, read in {
    "pyarrow, schema only": lambda: pq.read_schema("rows.parquet"),
    "pyarrow, the other column": lambda: pq.read_table("rows.parquet", columns=["text"]),
    "datasets": lambda: load_dataset("parquet", data_files="rows.parquet", cache_dir="cache"),
}.items():
    try:
        read()
    except pa.ArrowNotImplementedError as error:
        print(f"{name}: {error}")
        assert "more than 64 bits" in str(error)
    else:
        raise SystemExit(f"{name} reads the file now")

found = duckdb.sql("select id from 'rows.parquet'").fetchall()
print("duckdb:", found)
assert [int.from_bytes(value, "little", signed=True) for (value,) in found] == ids
rows.with_columns(pl.col("id").cast(pl.Decimal(38, 0))).write_parquet("decimal.parquet")
assert [int(value) for value in pq.read_table("decimal.parquet")["id"].to_pylist()] == ids
PY
