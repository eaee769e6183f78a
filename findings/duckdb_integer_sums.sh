#!/usr/bin/env bash
# duckdb: a sum of whole numbers becomes a floating-point column in parquet.
#
# Versions: duckdb 2.0.1, pyarrow 25.0.1
# Guess:    sum() of integers is an integer, in the parquet file too; what does not fit is an error.
# Seen:     sum() of any integer column is a HUGEINT, and COPY ... TO writes HUGEINT as double: 3 comes back as 3.0, and a sum above 2^53 with
#           another last digit. to_arrow_table() gives decimal128(38, 0), which is exact. count() stays an integer.
# Effect:   token counts and summed ids per source are floats for every reader of the file; a schema that says int64 no longer fits. Write
#           sum(x)::BIGINT.
source "$(dirname "$0")/install.sh" duckdb==2.0.1 pyarrow==25.0.1
py - <<'PY'
import duckdb
import pyarrow.parquet as pq

duckdb.sql("CREATE TABLE rows AS SELECT * FROM (VALUES (1::TINYINT, 2**53::BIGINT), (2::TINYINT, 1::BIGINT)) AS t(tokens, id)")
sums = "SELECT sum(tokens) AS tokens, sum(id::BIGINT) AS id, count(*) AS rows FROM rows"
duckdb.sql(f"COPY ({sums}) TO 'sums.parquet'")
exact, written = duckdb.sql(sums).fetchall()[0], pq.read_table("sums.parquet").to_pylist()[0]
types = {field.name: str(field.type) for field in pq.read_schema("sums.parquet")}
print("duckdb itself: ", exact)
print("in the file:   ", written, types)
print("as Arrow table:", duckdb.sql(sums).to_arrow_table().schema.field("tokens").type)
assert exact == (3, 2**53 + 1, 2)
assert types == {"tokens": "double", "id": "double", "rows": "int64"}
assert repr(written["tokens"]) == "3.0" and written["id"] == float(2**53)
assert str(duckdb.sql(sums).to_arrow_table().schema.field("tokens").type) == "decimal128(38, 0)"
PY
