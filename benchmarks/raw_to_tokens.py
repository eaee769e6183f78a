"""Raw JSON to a tokens folder by several trees of this project in turns: seconds, processor seconds, peak memory, ratios.

    git worktree add ../start 88213a7 && make -C ../start venv
    python benchmarks/raw_to_tokens.py data.json --tokenizer QWEN3_FOLDER --trees ../start . [--runs 3] [--work /dev/shm]

Each tree is a folder with its own .venv. `talaria convert` and `talaria tokenize` are timed from start to exit; the medians
count, and ratios are those of the first tree to each. The order of the trees turns from run to run: who comes first gets pages
of memory that the system must clear. Fails where two trees do not write the same shards. Wall seconds count on a quiet machine
only; the load is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from reference_convert import timed

STAGES = ("convert", "tokenize")
SUMS = ("seconds", "cpu_seconds")
Run = dict[str, dict[str, Any]]


def once(tree: Path, source: Path, tokenizer: Path, work: Path) -> tuple[Run, str]:
    """Both stages' measures, and a digest of the shards."""
    talaria, parquet, tokens = str(tree / ".venv/bin/talaria"), work / "messages.parquet", work / "tokens"
    commands = {
        "convert": ["--input", str(source), "--output", str(parquet)],
        "tokenize": ["--input", str(parquet), "--tokenizer", str(tokenizer), "--output", str(tokens)],
    }
    run = {stage: timed([talaria, stage, *commands[stage]]) for stage in STAGES}
    digest = hashlib.blake2b()
    for shard in sorted(tokens.glob("*.arrow")):
        with shard.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "blake2b").digest())
    return run, digest.hexdigest()


def median(runs: list[Run], stage: str, measure: str) -> float:
    return statistics.median(run[stage][measure] for run in runs)


def summary(runs: list[Run]) -> dict[str, float]:
    stages = {f"{stage}_{name}": median(runs, stage, name) for stage in STAGES for name in ("seconds", "cpu_seconds", "peak_mb")}
    both = {name: statistics.median(sum(run[stage][name] for stage in STAGES) for run in runs) for name in SUMS}
    return stages | both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--trees", type=Path, nargs="+", required=True, help="the first is what the others are compared with")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="a folder in memory, for quiet figures")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    args = parser.parse_args()
    trees = [tree.resolve() for tree in args.trees]
    runs: dict[Path, list[Run]] = {tree: [] for tree in trees}
    shards = set()
    for number in range(args.runs):
        first = number % len(trees)
        for tree in trees[first:] + trees[:first]:
            with tempfile.TemporaryDirectory(prefix="raw-to-tokens-", dir=args.work) as folder:
                run, digest = once(tree, args.source.resolve(), args.tokenizer.resolve(), Path(folder))
            runs[tree].append(run)
            shards.add(digest)
            print(f"load {os.getloadavg()[0]:.1f}", tree, json.dumps(run), flush=True)
    found = {str(tree): summary(measured) for tree, measured in runs.items()}
    for tree, measures in found.items():
        ratios = {f"x {name}": round(found[str(trees[0])][name] / measures[name], 2) for name in SUMS}
        print(tree, json.dumps(measures | ratios))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if len(shards) > 1:
        raise SystemExit("the trees do not write the same shards.")


if __name__ == "__main__":
    main()
