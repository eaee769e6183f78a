#!/usr/bin/env bash
# fastparquet: a column of messages is read as None in each row, without an error.
#
# Versions: fastparquet 2026.9.0, pandas 3.1.1, pyarrow 25.0.1
# Guess:    what the reader does not know, lists of structs and lists of lists, is refused, as other readers do.
# Seen:     pandas.read_parquet(engine="fastparquet") gives the rows, and None for each list of structs (messages) and each list of lists
#           (token ids by turn). A list of numbers is read, a struct becomes columns such as `meta.source`, and float16 are raw bytes.
#           What is said is that pandas will drop this engine.
# Effect:   where pyarrow is not installed, or by an old engine setting, a chat data set has its right number of rows and is empty: all
#           conversations are "missing" and dropped. Name engine="pyarrow".
source "$(dirname "$0")/install.sh" fastparquet==2026.9.0 pandas==3.1.1 pyarrow==25.0.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

rows = {
    "id": [1, 2],
    "messages": [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], [{"role": "user", "content": "Bye"}]],
    "ids_of_turns": [[[1, 2], [3]], [[4]]],
    "ids": [[1, 2, 3], [4]],
    "meta": [{"source": "web"}, {"source": "books"}],
}
table = pa.table(rows).append_column("score", pa.array([1.5, 2.5], pa.float16()))
pq.write_table(table, "rows.parquet")
assert pq.read_table("rows.parquet").to_pydict() == table.to_pydict()
seen = pd.read_parquet("rows.parquet", engine="fastparquet")
for name in seen:
    print(f"{name}: {seen[name].tolist()}")
assert seen["messages"].tolist() == [None, None]
assert seen["ids_of_turns"].tolist() == [None, None]
assert seen["ids"].tolist() == [[1, 2, 3], [4]]
assert seen["meta.source"].tolist() == ["web", "books"] and "meta" not in seen
assert all(isinstance(value, bytes) for value in seen["score"])
PY
