#!/usr/bin/env bash
# MLflow: a table of answers comes back from load_table with other answers: "007" is 7, a loss of 1e-12 is 0.
#
# Versions: mlflow 3.17.2, pandas 3.1.1
# Guess:    load_table returns what log_table wrote: text as text, numbers as they were.
# Seen:     log_table writes JSON with ten digits after the point, so 1e-12 is lost in the file. load_table guesses types from the values: a text
#           column of which each value reads as a number becomes integers ("007" is 7, "1e3" is 1000.0), and one called date becomes timestamps.
#           One value that is no number keeps the whole column as text. Nothing is said.
# Effect:   exact match of loaded answers against "007" fails for all rows or for none, by the other rows of the table; small probabilities are 0.
#           Log a parquet file, or JSON Lines, as an artifact. Talaria's reports are files of its own.
source "$(dirname "$0")/install.sh" mlflow==3.17.2 pandas==3.1.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import mlflow
import pandas as pd

mlflow.set_tracking_uri("sqlite:///mlflow.db")


def back(**columns):
    """The table as load_table gives it."""
    with mlflow.start_run() as run:
        mlflow.log_table(pd.DataFrame(columns), "answers.json")
    return mlflow.load_table("answers.json", run_ids=[run.info.run_id]).to_dict("list")


seen = back(answer=["007", "012"], target=["1e3", "2"], date=["2024-01-01", "2024-01-02"], loss=[1e-12, 1.2345678901234])
for name, values in seen.items():
    print(f"{name}: {values}")
assert seen["answer"] == [7, 12]
assert seen["target"] == [1000.0, 2.0]
assert seen["date"] == [pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")]
assert seen["loss"][0] == 0.0 and abs(seen["loss"][1] - 1.2345678901) < 1e-14
mixed = back(answer=["007", "012", "no idea"])
print("with one answer in words:", mixed["answer"])
assert mixed["answer"] == ["007", "012", "no idea"]
PY
