#!/usr/bin/env bash
# zstandard, daft: of a .zst file in several frames only the first is read, without a word; of a .bz2 in several streams too.
#
# Versions: zstandard 0.25.0, daft 0.7.26, polars 2.1.0, duckdb 2.0.1, pyarrow 25.0.1, pandas 3.1.1, fsspec 2026.9.0
# Guess:    a compressed file is read to its end. Files in several frames are common: pzstd, pbzip2 and seekable writers make them, and so does
#           joining two files.
# Seen:     of two frames with two rows each, daft reads two rows of .zst and of .bz2, and four of .gz. In the package zstandard the functions
#           decompress and read_to_iter and a decompressobj return the first frame, while open, stream_reader and copy_stream return all.
#           polars, duckdb, pyarrow, pandas and fsspec read four. There is no error and no warning.
# Effect:   a corpus packed on several cores is trained in part, by one program and not by the next. Count rows with a second reader, or repack
#           into one frame (zstd -T0 makes one). Talaria reads all frames.
source "$(dirname "$0")/install.sh" zstandard==0.25.0 daft==0.7.26 polars==2.1.0 duckdb==2.0.1 pyarrow==25.0.1 pandas==3.1.1 fsspec==2026.9.0
export DO_NOT_TRACK=true
py - 2>log.txt <<'PY' || { tail -5 log.txt; exit 1; }
import bz2
import gzip
import io

import daft
import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.json
import zstandard

ROWS = [b'{"row": %d}\n' % row for row in range(4)]
PACKERS = {"zst": zstandard.compress, "gz": gzip.compress, "bz2": bz2.compress}
packed = {}
for suffix, pack in PACKERS.items():
    packed[suffix] = pack(b"".join(ROWS[:2])) + pack(b"".join(ROWS[2:]))
    with open(f"rows.jsonl.{suffix}", "wb") as file:
        file.write(packed[suffix])

readers = {
    "daft": lambda name: daft.read_json(name).count_rows(),
    "pyarrow": lambda name: pa.json.read_json(pa.input_stream(name)).num_rows,
    "pandas": lambda name: len(pd.read_json(name, lines=True)),
    "fsspec": lambda name: len(fsspec.open(name, "rb", compression="infer").open().read().splitlines()),
    "polars": lambda name: pl.read_ndjson(name).height,
    "duckdb": lambda name: duckdb.sql(f"SELECT count(*) FROM read_json('{name}')").fetchall()[0][0],
}
for name, read in readers.items():
    suffixes = [suffix for suffix in PACKERS if suffix != "bz2" or name not in ("polars", "duckdb")]  # these two refuse bz2
    seen = {suffix: read(f"rows.jsonl.{suffix}") for suffix in suffixes}
    print(f"{name}: rows read of 4: {seen}")
    assert seen == ({"zst": 2, "gz": 4, "bz2": 2} if name == "daft" else dict.fromkeys(suffixes, 4)), name


def copied():
    found = io.BytesIO()
    zstandard.ZstdDecompressor().copy_stream(io.BytesIO(packed["zst"]), found)
    return found.getvalue()


one = zstandard.ZstdDecompressor()
ways = {
    "decompress": (lambda: zstandard.decompress(packed["zst"]), 2),
    "read_to_iter": (lambda: b"".join(one.read_to_iter(io.BytesIO(packed["zst"]))), 2),
    "decompressobj": (lambda: one.decompressobj().decompress(packed["zst"]), 2),
    "open": (lambda: zstandard.open("rows.jsonl.zst", "rb").read(), 4),
    "stream_reader": (lambda: one.stream_reader(io.BytesIO(packed["zst"])).read(), 4),
    "copy_stream": (copied, 4),
}
for name, (read, expected) in ways.items():
    rows = len(read().splitlines())
    print(f"zstandard, {name}: rows read of 4: {rows}")
    assert rows == expected, name
PY
