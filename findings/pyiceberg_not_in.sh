#!/usr/bin/env bash
# PyIceberg: "not in" with one name leaves out the rows without a value, with two names it keeps them; a delete by that filter leaves them.
#
# Versions: pyiceberg 0.12.0, pyarrow 25.0.1
# Guess:    a filter treats null in one way, whether a list has one item or two, and delete(x) removes the rows that scan(x) shows.
# Seen:     scan("source not in ('web')") leaves out rows whose source is null, as "source != 'web'" does, which it becomes. With a second name
#           the rows with null are among the result, though no row has that name. delete() with the same filter removes the others, and not these.
# Effect:   one more name in a list of excluded sources lets all rows without a source into a training set, and rows shown as "to be deleted" stay.
#           Add "and source is not null", or "or source is null".
source "$(dirname "$0")/install.sh" "pyiceberg[sql-sqlite,pyarrow]==0.12.0" pyarrow==25.0.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import os

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog

catalog = SqlCatalog("local", uri="sqlite:///catalog.db", warehouse=f"file://{os.getcwd()}/warehouse")
catalog.create_namespace("chat")
rows = pa.table({"id": [1, 2, 3], "source": ["web", None, "books"]})


def seen(condition):
    """The rows that a scan shows, and the rows that stay after a delete."""
    table = catalog.create_table("chat.rows", schema=rows.schema)
    table.append(rows)
    shown = table.scan(row_filter=condition).to_arrow()["id"].to_pylist()
    table.delete(condition)
    left = table.scan().to_arrow()["id"].to_pylist()
    catalog.drop_table("chat.rows")
    print(f"{condition}: the scan shows rows {shown}, and after the delete {left} are left")
    return shown, left


assert seen("source != 'web'") == ([3], [1, 2])
assert seen("source not in ('web')") == ([3], [1, 2])
assert seen("source not in ('web', 'nobody')") == ([2, 3], [1, 2])
assert seen("source not in ('web', 'nobody') and source is not null") == ([3], [1, 2])
PY
