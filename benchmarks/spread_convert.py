"""Processor seconds of convert in one process, and of each step of convert.shards: what is spread, and what the join costs.

python benchmarks/spread_convert.py --rows 200000 --parts 4
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from talaria.common.files import file_digest
from talaria.config.load import parse
from talaria.config.schema import Config
from talaria.data.synthetic.generator import generate
from talaria.stages.run import run_stage
from talaria.store.store import Store
from talaria.workflow import convert_parts


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--parts", type=int, default=4)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), chosen.rows, chosen.parts)


def measure(folder: Path, rows: int, parts: int) -> None:
    def write(out: Path) -> dict[str, object]:
        (out / "data").mkdir()
        with (out / "data" / "rows.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in generate(rows, 0))
        return {}

    store = Store(folder / "store")
    made = {"download": store.run("download", "d" * 64, write, described_by={})}
    size = (made["download"].path / "data" / "rows.jsonl").stat().st_size
    whole = clocked("one process", lambda: run_stage("convert", config(1), store, made))
    digest = file_digest(whole.path / "messages.parquet")
    spread = config(parts)
    found = convert_parts.parts_to_do(spread, store, made, force=True)
    for part in found:
        clocked(f"columns of part {part}", lambda part=part: convert_parts.find_columns(spread, store, made, part))
    for part in found:
        clocked(f"rows of part {part}", lambda part=part: convert_parts.convert_part(spread, store, made, part))
    joined = clocked("join", lambda: convert_parts.join(spread, store, made, force=True))
    print(f"{rows:,} rows, {size / 1e6:.0f} MB; the same bytes: {file_digest(joined.path / 'messages.parquet') == digest}")


def config(shards: int) -> Config:
    return parse({"name": "x", "convert": {"shards": shards}}, "benchmark")


def clocked(name: str, work: Callable[[], Any]) -> Any:
    wall, processor = time.perf_counter(), time.process_time()
    result = work()
    print(f"{name:20} {time.process_time() - processor:6.2f} s of processor, {time.perf_counter() - wall:6.2f} s")
    return result


if __name__ == "__main__":
    main()
