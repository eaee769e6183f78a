#!/usr/bin/env bash
# polars: the number of tokens of a large corpus wraps around at 4.29 billion, and a shorter text is 4.29 billion characters longer.
#
# Versions: polars 2.1.0
# Guess:    sum() of a column of counts is a 64-bit number, as in numpy, pandas, pyarrow and duckdb, and as polars does for 8 and 16 bits; the
#           difference of two lengths can be negative.
# Seen:     lengths (list.len, str.len_bytes, str.len_chars) and row counts are 32 bits without a sign, and their sum, cum_sum, sum_horizontal and
#           SQL sum stay so: two rows of 3,000,000,000 tokens are 1,705,032,704. Sums of Int32 become negative. len(x) - len(y) of a text that is one
#           character shorter is 4,294,967,295, which passes a filter "longer than". Nothing is said; mean is right.
# Effect:   a corpus above 4.29 billion tokens is reported and mixed as a small one, and pairs are kept for the wrong length. Cast lengths to Int64
#           where they are made. Talaria counts with numpy in 64 bits.
source "$(dirname "$0")/install.sh" polars==2.1.0 numpy
py - <<'PY'
import numpy as np
import polars as pl

tokens = pl.DataFrame({"shard": ["a", "a"], "tokens": pl.Series([3_000_000_000] * 2, dtype=pl.UInt32)})
answers = pl.DataFrame({"chosen": ["no"], "rejected": ["yes"], "ids": [[1, 2]]})
lengths = answers.select(pl.col("ids").list.len(), pl.col("chosen").str.len_chars(), pl.col("rejected").str.len_bytes())
print("the types of lengths:", lengths.schema)
assert set(lengths.dtypes) == {pl.UInt32}
WRAPPED = 6_000_000_000 - 2**32
sums = {
    "sum": tokens["tokens"].sum(),
    "group_by": tokens.group_by("shard").agg(pl.col("tokens").sum())["tokens"].item(),
    "cum_sum": tokens["tokens"].cum_sum()[-1],
    "SQL": pl.sql("SELECT sum(tokens) FROM tokens", eager=True).item(),
}
print("3,000,000,000 twice:", sums, "as numpy:", tokens["tokens"].to_numpy().sum(), "16 bits:", pl.Series([40_000] * 2, dtype=pl.UInt16).sum())
assert set(sums.values()) == {WRAPPED}
assert tokens["tokens"].to_numpy().sum() == 6_000_000_000 == tokens["tokens"].cast(pl.Int64).sum()
assert pl.Series([40_000] * 2, dtype=pl.UInt16).sum() == 80_000
assert tokens["tokens"].mean() == 3_000_000_000
print("2**31 - 1 and 1 as Int32:", pl.Series([2**31 - 1, 1], dtype=pl.Int32).sum())
assert pl.Series([2**31 - 1, 1], dtype=pl.Int32).sum() == -(2**31)
longer = answers.with_columns(by=pl.col("chosen").str.len_chars() - pl.col("rejected").str.len_chars()).filter(pl.col("by") > 100)
print("'no' is longer than 'yes' by", longer["by"].to_list())
assert longer["by"].to_list() == [2**32 - 1]
PY
