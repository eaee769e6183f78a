#!/usr/bin/env bash
# pyarrow: fields of messages that the first file lacks are not read from the others, without a word.
#
# Version:  pyarrow 25.0.1, polars 2.1.0, datasets 5.2.0
# Guess:    a folder of parquet files whose messages differ in their fields is an error, as in polars and datasets, or gets the union.
# Seen:     pq.read_table(FOLDER) and pyarrow.dataset take the first file's schema and cast to it. Casting a struct to one with fewer
#           fields drops the others: with reasoning in the second file only, no row has any. Table.cast, called "safe" as it refuses
#           an integer that does not fit, drops them too. concat_tables(promote_options="permissive") gives the union.
# Effect:   of a folder where tool calls or reasoning come in a later file, those are not trained. Talaria reads each file by its own
#           schema; the columns of the result are the union.
source "$(dirname "$0")/install.sh" pyarrow==25.0.1 polars==2.1.0 datasets==5.2.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import datasets
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from pathlib import Path

Path("data").mkdir()
plain = pa.table({"messages": [[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]]})
thought = pa.table({"messages": [[{"role": "assistant", "content": "9", "reasoning": "3 times 3"}]]})
pq.write_table(plain, "data/a.parquet")
pq.write_table(thought, "data/b.parquet")
last = {
    "pq.read_table": pq.read_table("data"),
    "pyarrow.dataset": pyarrow.dataset.dataset("data").to_table(),
    "Table.cast": thought.cast(plain.schema),
    "concat_tables, permissive": pa.concat_tables([plain, thought], promote_options="permissive"),
}
for name, table in last.items():
    message = table.to_pylist()[-1]["messages"][-1]
    print(f"{name:26}", message)
    assert message.get("reasoning") == ("3 times 3" if "permissive" in name else None)
assert "reasoning" not in str(last["pq.read_table"].schema)
for name, read in {
    "polars": lambda: pl.read_parquet("data/*.parquet"),
    "datasets": lambda: datasets.load_dataset("parquet", data_files=["data/a.parquet", "data/b.parquet"]),
}.items():
    try:
        read()
    except Exception as error:
        print(f"{name:26} raises {type(error).__name__}")
    else:
        raise AssertionError(name)
PY
