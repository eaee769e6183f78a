"""The data stages against what else does the same work, in one run on one machine: seconds, ratios, peak memory, growth.

    python benchmarks/data.py openhermes_like_100k.json --tokenizer QWEN3_FOLDER [--rows 10000 100000 1000000] [--runs 3]

Convert against the reference's script (reference_convert.py); tokenise against data_rivals.py. Every run is a process of its own,
timed from start to exit; rivals take turns, and the median of the runs counts. A rival that would take longer than --patience
seconds, judged by its speed on fewer rows, is left out. The source is a pretty-printed JSON array in OpenHermes-2.5's schema;
fewer rows are an even sample of it, more are copies with ids of their own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from reference_convert import convert_command, reference_command, repeat, timed

HERE = Path(__file__).parent
TALARIA = str(Path(sys.executable).parent / "talaria")
Run = dict[str, Any]


def resized(source: Path, rows: int, work: Path) -> Path:
    """The source with `rows` rows: an even sample, or so many copies of it all."""
    data = json.loads(source.read_text(encoding="utf-8"))
    path = work / f"{rows}.json"
    if rows == len(data):
        path.symlink_to(source.resolve())
    elif rows < len(data):
        path.write_text(json.dumps(data[:: len(data) // rows][:rows], indent=4), encoding="utf-8")
    else:
        repeat(source, path, rows // len(data))
    return path


def compare(candidates: dict[str, Callable[[], Run]], runs: int) -> dict[str, Run]:
    """Runs of all candidates in turns; of each, the run with the median of seconds."""
    results: dict[str, list[Run]] = {name: [] for name in candidates}
    for _ in range(runs):
        for name, measure in candidates.items():
            results[name].append(measure())
    return {name: sorted(found, key=lambda run: run["seconds"])[(len(found) - 1) // 2] for name, found in results.items()}


def fresh(folder: Path, command: Callable[[Path], list[str]]) -> Run:
    """A timed run with an empty folder to write into."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run = timed(command(folder))
    shutil.rmtree(folder)
    return run


def convert(source: Path, work: Path) -> dict[str, Callable[[], Run]]:
    return {
        "convert": lambda: fresh(work / "out", lambda out: convert_command(source, out / "messages.parquet")),
        "reference": lambda: fresh(work / "out", lambda out: reference_command(source, out / "messages.parquet", out / "cache")),
    }


def tokenize(parquet: Path, tokenizer: Path, work: Path) -> dict[str, Callable[[], Run]]:
    def ours(out: Path) -> list[str]:
        return [TALARIA, "tokenize", "--input", str(parquet), "--tokenizer", str(tokenizer), "--output", str(out / "tokens")]

    def rival(name: str) -> Callable[[], Run]:
        script = [sys.executable, str(HERE / "data_rivals.py"), name, str(parquet), str(tokenizer)]
        return lambda: fresh(work / "out", lambda out: [*script, str(out)])

    return {"tokenize": lambda: fresh(work / "out", ours)} | {
        name: rival(name) for name in ("without", "batched", "trl", "trl-default")
    }


def measure(title: str, rows: int, candidates: dict[str, Callable[[], Run]], slow: dict[str, float], args: Any) -> dict[str, Run]:
    """Run, print a line each, and remember the seconds a row of each candidate in `slow`."""
    ours = {title, "without"}
    able = {name: run for name, run in candidates.items() if name in ours or slow.get(name, 0) * rows < args.patience}
    results = compare(able, args.runs)
    first = results[title]
    for name, run in results.items():
        slow[name] = run["seconds"] / rows
        wall, work = run["seconds"] / first["seconds"], run["cpu_seconds"] / first["cpu_seconds"]
        ratios = f"{wall:6.2f}x wall {work:6.2f}x cpu" if name != title else " " * 24
        speed = f"{run['seconds']:8.1f} s {run['cpu_seconds']:8.1f} cpu s {rows / run['seconds']:>9,.0f} rows/s"
        print(f"{rows:>9,} {name:11} {speed} {ratios} {run['peak_mb']:>6} MB", flush=True)
    for name in candidates.keys() - able.keys():
        print(f"{rows:>9,} {name:11} left out: about {slow[name] * rows:.0f} s", flush=True)
    return results


def environment() -> dict[str, str]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    names = ("polars", "pyarrow", "fastokens", "tokenizers", "datasets", "transformers", "trl", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"cpu": f"{cpu}, {len(os.sched_getaffinity(0))} cores", "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of a ChatML tokenizer, Qwen3's for the published figures"
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--patience", type=float, default=300)
    parser.add_argument("--stages", nargs="+", choices=("convert", "tokenize"), default=["convert", "tokenize"])
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where there is room for 10 GB")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    print(json.dumps(environment()))
    print(f"load average at the start: {os.getloadavg()[0]:.1f}")
    slow: dict[str, float] = {}
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="talaria-benchmark-", dir=args.work) as folder:
        work = Path(folder)
        for rows in args.rows:
            with ProcessPoolExecutor(1) as pool:  # a child's peak memory begins at its parent's, so keep this process small
                source = pool.submit(resized, args.source, rows, work).result()
            parquet = work / f"{rows}.parquet"
            timed(convert_command(source, parquet))
            if "convert" in args.stages:
                found.append({"rows": rows} | measure("convert", rows, convert(source, work), slow, args))
            if "tokenize" in args.stages:
                found.append({"rows": rows} | measure("tokenize", rows, tokenize(parquet, args.tokenizer, work), slow, args))
            source.unlink()
            parquet.unlink()
    if args.json:
        args.json.write_text(json.dumps({**environment(), "results": found}, indent=1))


if __name__ == "__main__":
    main()
