#!/usr/bin/env bash
# lance: an update of one row moves it to the end, and its row id finds nothing afterwards; a compaction gives all rows new ids.
#
# Versions: pylance 14.0.2, pyarrow 25.0.1
# Guess:    update changes values and leaves the order of rows, so that a list of embeddings, losses or held-out positions still belongs to them;
#           a _rowid is the row's for good.
# Seen:     update and merge_insert write the changed rows again at the end: take([0]) and the first row of a scan are another row. The row has a
#           new _rowid, and a filter by the old one finds no row, without an error. compact_files gives new ids to all rows. With
#           enable_stable_row_ids=True, which is not the default, ids stay; the order changes just the same.
# Effect:   scores that are joined by position after a correction of one answer belong to other rows; "skip these ids" skips none. Keep an id column
#           and join by it. Talaria's outputs are never changed in place.
source "$(dirname "$0")/install.sh" pylance==14.0.2 pyarrow==25.0.1
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import lance
import pyarrow as pa

ROWS = pa.table({"id": [10, 11, 12, 13], "score": [0.1, 0.2, 0.3, 0.4]})


def seen(path, moment):
    """The ids in reading order, the id at position 0, and the rows that the first row's old _rowid finds."""
    dataset = lance.dataset(path)
    table = dataset.to_table(with_row_id=True)
    first = dataset.take([0])["id"].to_pylist()
    old = dataset.to_table(columns=["id"], filter="_rowid = 0")["id"].to_pylist()
    print(f"{path}, {moment}: ids {table['id'].to_pylist()}, row ids {table['_rowid'].to_pylist()}, take([0]) {first}, _rowid = 0 {old}")
    return table["id"].to_pylist(), first, old


for path, how in (("rows", {}), ("stable", {"enable_stable_row_ids": True})):
    lance.write_dataset(ROWS, path, **how)
    assert seen(path, "written") == ([10, 11, 12, 13], [10], [10])
    lance.dataset(path).update({"score": "0.9"}, where="id = 10")
    found = [10] if how else []
    assert seen(path, "row 10 updated") == ([11, 12, 13, 10], [11], found)
    lance.dataset(path).optimize.compact_files()
    assert seen(path, "compacted") == ([11, 12, 13, 10], [11], found)
ids = lance.dataset("rows").to_table(with_row_id=True)["_rowid"].to_pylist()
assert not set(ids) & {0, 1, 2, 3}
PY
