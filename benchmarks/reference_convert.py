"""The reference script's data step as it is, and convert beside it: wall time, ratio and peak memory in one run.

    python benchmarks/reference_convert.py openhermes.json               # both, one after the other
    python benchmarks/reference_convert.py openhermes.json --repeat 10   # convert alone, on ten times the rows

Each run is a process of its own, timed with its start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
ROOT = Path(__file__).resolve().parents[1]


def reference_convert(source: Path, output: Path, cache: Path) -> None:
    """What the reference does with OpenHermes-2.5, but from a local file: load, map row by row, write.

    `cache` should be an empty folder, or `datasets` reuses an earlier run's work.
    """
    from datasets import load_dataset

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        messages = []
        for turn in row["conversations"]:
            if turn["from"] not in ROLES:
                raise ValueError(f"Unknown role: {turn['from']}")
            messages.append({"role": ROLES[turn["from"]], "content": turn["value"]})
        return {"messages": messages}

    data = load_dataset("json", data_files=str(source), cache_dir=str(cache))["train"]
    data.map(convert).to_parquet(str(output))


def repeat(source: Path, output: Path, times: int) -> None:
    """A pretty-printed array `times` over, written as the hub's file is; a row that has an id gets one of its own."""
    rows = json.loads(source.read_text(encoding="utf-8"))
    with output.open("w", encoding="utf-8") as file:
        for copy in range(times):
            for number, row in enumerate(rows):
                named = row | {"id": f"{copy}-{row['id']}"} if "id" in row else row
                file.write(("[\n" if copy == number == 0 else ",\n") + "    ")
                file.write(json.dumps(named, indent=4).replace("\n", "\n    "))
        file.write("\n]")


def timed(command: list[str]) -> dict[str, Any]:
    """Seconds from start to exit, processor seconds and peak resident bytes of a command."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stderr
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        raise RuntimeError(f"{command}: {errors[-2000:]}")
    cpu = usage.ru_utime + usage.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "peak_mb": round(usage.ru_maxrss / 1000)}


def convert_command(source: Path, output: Path) -> list[str]:
    """The CLI, as a user starts it."""
    return [str(Path(sys.executable).parent / "talaria"), "convert", "--input", str(source), "--output", str(output)]


def reference_command(source: Path, output: Path, cache: Path) -> list[str]:
    return [sys.executable, __file__, str(source), "--reference", str(output), str(cache)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="pretty-printed JSON array in OpenHermes-2.5's schema")
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="convert alone on N copies of the rows")
    parser.add_argument("--runs", type=int, default=3, help="runs of convert; the median counts")
    parser.add_argument("--reference", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.reference:
        reference_convert(args.source, *args.reference)
        return
    with tempfile.TemporaryDirectory(prefix="talaria-benchmark-") as folder:
        work = Path(folder)
        source = args.source
        if args.repeat > 1:
            source = work / "repeated.json"
            repeat(args.source, source, args.repeat)
        ours = sorted(
            (timed(convert_command(source, work / "ours.parquet")) for _ in range(args.runs)), key=lambda r: r["seconds"]
        )
        result = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "bytes": source.stat().st_size}
        result |= {"convert": ours[len(ours) // 2], "runs": [run["seconds"] for run in ours]}
        if args.repeat == 1:
            theirs = timed(reference_command(source, work / "theirs.parquet", work / "cache"))
            result |= {"reference": theirs, "ratio": round(theirs["seconds"] / result["convert"]["seconds"], 1)}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
