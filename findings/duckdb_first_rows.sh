#!/usr/bin/env bash
# duckdb: DISTINCT ON and first() keep other rows of the same file at each run, and a seed does not make random() repeatable.
#
# Versions: duckdb 2.0.1
# Guess:    with preserve_insertion_order, the default, LIMIT and COPY keep the file's order, so DISTINCT ON (prompt) keeps a prompt's first row, and
#           setseed(0.5) draws the same rows each time.
# Seen:     with more than one thread DISTINCT ON, first(), any_value() and the order in list() and string_agg() depend on which thread comes first:
#           runs differ, though LIMIT and row_number() keep the order. WHERE random() < 0.01 after setseed differs as well. With one thread all
#           are repeatable. USING SAMPLE 1% (bernoulli, 42) is the same for any number of threads.
# Effect:   a corpus that was deduplicated by prompt is another one at each build, with other answers, and digests and splits change. Name the order:
#           first(answer ORDER BY id). Talaria keeps the source's order.
source "$(dirname "$0")/install.sh" duckdb==2.0.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import hashlib

import duckdb

duckdb.sql("COPY (SELECT i AS id, i % 1009 AS prompt FROM range(2000000) t(i)) TO 'rows.parquet' (ROW_GROUP_SIZE 20000)")
RUNS = 8


def results(query, threads, before=None):
    """How many different results the query has in several runs."""
    found = set()
    for _ in range(RUNS):
        connection = duckdb.connect(config={"threads": threads})
        if before:
            connection.sql(before).fetchall()
        found.add(hashlib.sha256(repr(sorted(connection.sql(query).fetchall())).encode()).hexdigest())
    return len(found)


for query, before, stable in (
    ("SELECT DISTINCT ON (prompt) prompt, id FROM 'rows.parquet'", None, False),
    ("SELECT prompt, first(id) FROM 'rows.parquet' GROUP BY prompt", None, False),
    ("SELECT id FROM 'rows.parquet' WHERE random() < 0.001", "SELECT setseed(0.5)", False),
    ("SELECT prompt, first(id ORDER BY id) FROM 'rows.parquet' GROUP BY prompt", None, True),
    ("SELECT id FROM 'rows.parquet' USING SAMPLE 0.1% (bernoulli, 42)", None, True),
    ("SELECT id FROM 'rows.parquet' LIMIT 5", None, True),
):
    one, four = results(query, 1, before), results(query, 4, before)
    print(f"{query}: {one} result of {RUNS} runs with one thread, {four} with four")
    assert one == 1
    assert four == 1 if stable else four > 1
PY
