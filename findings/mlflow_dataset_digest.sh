#!/usr/bin/env bash
# MLflow: the digest of a data set of conversations does not depend on the conversations.
#
# Version:  mlflow 3.17.2, datasets 5.2.0, pandas 2.3.3, polars 2.1.0
# Guess:    the digest that a run's data set input carries tells two data sets apart; the run page shows it for that.
# Seen:     from_huggingface and from_pandas hash the plain columns of the first 10,000 rows and no column of lists: two data sets
#           with other messages have one digest, as have two that differ after row 10,000. from_huggingface does not count the rows
#           either: 10,000 and 30,000 of them are the same to it. from_polars hashes every row and every column.
# Effect:   in MLflow, runs on different chat data look as if they had been trained on the same. Talaria gives its own digests of
#           the whole files.
source "$(dirname "$0")/install.sh" mlflow==3.17.2 datasets==5.2.0 pandas==2.3.3 polars==2.1.0
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import datasets
import mlflow.data
import pandas as pd
import polars as pl


def digests(make, *tables):
    return [make(table).digest for table in tables]


hugging_face = lambda table: mlflow.data.from_huggingface(datasets.Dataset.from_dict(table))
pandas = lambda table: mlflow.data.from_pandas(pd.DataFrame(table))
polars = lambda table: mlflow.data.from_polars(pl.DataFrame(table))

talks = [{"messages": [[{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": word}]]} for word in ("Red.", "Blue.")]
same = [f"row {i}" for i in range(10_000)]
long = [{"text": same + [f"{kind} {i}" for i in range(20_000)]} for kind in ("this", "that")]
for name, make in {"from_huggingface": hugging_face, "from_pandas": pandas, "from_polars": polars}.items():
    print(f"{name:17} other messages: {digests(make, *talks)}   other rows after 10,000: {digests(make, *long)}")
for make in (hugging_face, pandas):
    assert len(set(digests(make, *talks))) == 1
    assert len(set(digests(make, *long))) == 1
assert len(set(digests(polars, *talks))) == 2 == len(set(digests(polars, *long)))
counts = digests(hugging_face, {"text": same}, long[0])
print(f"from_huggingface  10,000 and 30,000 rows: {counts}")
assert counts[0] == counts[1]
PY
