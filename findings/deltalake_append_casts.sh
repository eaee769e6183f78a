#!/usr/bin/env bash
# deltalake: an append casts what does not fit the table's schema: "007" becomes 7, a score of 1.7 becomes 1, a count of 5 true.
#
# Versions: deltalake 1.6.6, pyarrow 25.0.1, pylance 14.0.2, pyiceberg 0.12.0
# Guess:    a Delta table enforces its schema: rows with another type are refused unless schema_mode says otherwise.
# Seen:     write_deltalake(mode="append") refuses missing and further columns, and casts types: text that reads as a number into integers, fractions
#           cut off, numbers and "false" into booleans, doubles into float32 (16,777,217 is 16,777,216), numbers into text. An empty text as
#           the value of a partition column comes back as null. Only what cannot be cast at all is an error. lance and PyIceberg refuse all of these.
# Effect:   the nightly append of a job whose column has changed goes through, and what is read is something else. Compare schemas before
#           appending. Talaria writes each output anew.
source "$(dirname "$0")/install.sh" deltalake==1.6.6 pyarrow==25.0.1 pylance==14.0.2 "pyiceberg[sql-sqlite,pyarrow]==0.12.0"
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import contextlib
import io
import os
import shutil

import lance
import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog

first = pa.table({"answer": [1], "flag": [True], "score": pa.array([0.5], pa.float32()), "text": ["x"]})
catalog = SqlCatalog("local", uri="sqlite:///catalog.db", warehouse=f"file://{os.getcwd()}/warehouse")
catalog.create_namespace("chat")


def iceberg(table):
    known = catalog.create_table_if_not_exists("chat.rows", schema=first.schema)
    with contextlib.redirect_stdout(io.StringIO()):
        known.append(table)


def appended(column, value):
    """What is read from the column after the append to a Delta table; lance and PyIceberg refuse it."""
    table = first.set_column(first.column_names.index(column), column, pa.array([value]))
    shutil.rmtree("delta", ignore_errors=True)
    write_deltalake("delta", first)
    write_deltalake("delta", table, mode="append")
    values = DeltaTable("delta").to_pyarrow_table()[column].to_pylist()
    values.remove(first[column][0].as_py())
    lance.write_dataset(first, "lance", mode="overwrite")
    for name, append in (("lance", lambda: lance.write_dataset(table, "lance", mode="append")), ("PyIceberg", lambda: iceberg(table))):
        try:
            append()
        except (OSError, ValueError):
            continue
        raise SystemExit(f"{name} takes {value!r} for {column} by now")
    print(f"{column}: {value!r} is read as {values[0]!r}")
    return values[0]


assert appended("answer", "007") == 7
assert appended("answer", 1.7) == 1 and isinstance(appended("answer", 2.7), int)
assert appended("flag", "false") is False and appended("flag", 5) is True
assert appended("score", 16_777_217.0) == 16_777_216.0
assert appended("text", 7) == "7"
parts = pa.table({"source": ["web", ""], "row": [1, 2]})
write_deltalake("parts", parts, partition_by=["source"])
sources = {row["row"]: row["source"] for row in DeltaTable("parts").to_pyarrow_table().to_pylist()}
print("a partition column of 'web' and '':", sources)
assert sources == {1: "web", 2: None}
PY
