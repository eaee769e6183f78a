"""The reference script's data step and how its rows compare with ours."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from reference_convert import reference_convert

Row = dict[str, Any]


def reference_rows(source: Path) -> list[Row]:
    """The rows that the reference script gives for a local file."""
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "reference.parquet"
        reference_convert(source, output, Path(folder) / "cache")
        return [plain(row) for row in pq.read_table(output).to_pylist()]


def our_rows(output: Path) -> list[Row]:
    return [plain(row) for row in pq.read_table(output).to_pylist()]


def plain(row: Row) -> Row:
    """Where a turn's weight comes and goes, the reference stores turns as JSON text and ours are null without one."""
    turns = (json.loads(turn) if isinstance(turn, str) else turn for turn in row.get("conversations") or [])
    known = [{name: value for name, value in turn.items() if value is not None} for turn in turns]
    return row | ({"conversations": known} if "conversations" in row else {})
