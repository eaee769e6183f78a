"""What a checkpoint and a dead rank cost, and how fast several GPUs train, through the product's own launch.

    python benchmarks/recovery.py [--shape qwen3-4b] [--gpus 2] [--only NAME ...] [--json FILE]

Each run prints its steps' median speed, the slowest of its first ten steps over the median, the seconds from the launch to the
first step, the longest step at a save and beside its writing, the host memory that the state took, and, where a rank was killed,
the seconds until the next step, and until the next one that had not been made before. `--package pipeline` measures a checkout
from before November 2026 in the same way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SAVED_AND_KILLED = {"steps": 14, "save_every": 5, "kill_after": 11, "snapshot_seconds": 20.0}
RUNS: dict[str, dict[str, Any]] = {
    "one": {"gpus": 1, "global_batch": 128, "steps": 8},
    "128 a card": {"global_batch": 256, "steps": 8},
    "64": {"global_batch": 64, "steps": 14},
    "32": {"global_batch": 32, "steps": 14},
    "sharded 64": {"global_batch": 64, "steps": 10, "sharding": "shard"},
    "save and kill": {"global_batch": 256, **SAVED_AND_KILLED},
    "one, save and kill": {"gpus": 1, "global_batch": 128, **SAVED_AND_KILLED},
}
DRIVER = """
import json, sys
from pathlib import Path
if {old}:
    from pipeline import settings
    from pipeline.train.launch import launch
else:
    from talaria.config import load as settings
    from talaria.launch.stage import launch
tree, work, output = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
launch(settings.parse(tree, "benchmark"), work / "tokens", work / "model", output, on_line=lambda line: print(line, flush=True))
"""


def run(name: str, options: dict[str, Any], args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One training in a folder of its own, ended after `steps` steps; a rank gets SIGKILL once step `kill_after` is done."""
    chosen = {"precision": args.precision, "lr": 1e-5, "save_every": 10**6, **options}
    wanted, kill_after = chosen.pop("steps"), chosen.pop("kill_after", None)
    chosen["num_processes"] = chosen.pop("gpus", args.gpus)
    chosen["global_batch"] //= args.divide_batch
    old = args.package == "pipeline"
    for key in ("snapshot_seconds",) if old else ():
        chosen.pop(key, None)
    output = work / f"out-{os.getpid()}"  # several may run at once, on cards of their own
    command = [sys.executable, "-c", DRIVER.format(old=old), json.dumps({"name": "r", "train": chosen}), str(work), str(output)]
    began, shared = time.time(), memory("Shmem")
    log = (work / f"log-{os.getpid()}.txt").open("a")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    most, killed, found = 0, None, []
    first = furthest = beyond = None
    while process.poll() is None and time.time() - began < args.limit:
        time.sleep(0.1)
        found = rows(output / "metrics.jsonl")
        most = max(most, memory("Shmem") - shared)
        last = found[-1]["step"] if found else 0
        first = first or (found[0]["time"] - began if found else None)
        beyond = beyond or (found[-1]["time"] - killed if killed and last > furthest else None)
        if kill_after and killed is None and last >= kill_after:
            os.kill(rank_of(output, chosen["num_processes"] - 1), signal.SIGKILL)
            killed, furthest = time.time(), last
        if last >= wanted:
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)  # what would follow, a checkpoint and an export, is not looked at
            break
    else:
        if process.poll() is None:
            print(f"{name}: ended after {args.limit:g} s", flush=True)
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
    process.wait(120)
    result = {"launch_to_first_step_ends": first, **summary(found, rows(output / "events.jsonl"), began, killed, most)}
    if killed:
        result["killed_to_step_not_made_before"] = beyond
    shutil.rmtree(output, ignore_errors=True)
    return result


def summary(
    found: list[dict[str, Any]], events: list[dict[str, Any]], began: float, killed: float | None, shared: int
) -> dict[str, Any]:
    seconds = [row["seconds"] for row in found]
    settled = [row for row in found if row["step"] > 3]
    if not settled:
        return {"failed": f"{len(found)} steps", "events": events}
    saves = {event["step"] for event in events if event["kind"] == "checkpoint"}
    median = statistics.median(row["seconds"] for row in settled)
    result = {
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in settled),
        "mfu": statistics.median(row["mfu"] or 0 for row in settled),
        "median_step": median,
        "slowest_of_ten_over_median": max(seconds[:10]) / median,
        "shared_memory_gb": shared / 1e9,
        "gaps_at_saves": [b["time"] - a["time"] - b["seconds"] for a, b in itertools.pairwise(found) if a["step"] in saves],
        "steps_beside_writes": [row["seconds"] / median for row in found if row["step"] - 1 in saves],
        "events": [f"{event['time'] - began:.1f} s {event['kind']} {event['message'][:110]}" for event in events],
    }
    if killed:
        after = [row["time"] for row in found if row["time"] > killed]
        result["killed_to_next_step"] = after[0] - killed if after else None
    return result


def memory(name: str) -> int:
    """Bytes of a line of /proc/meminfo."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def rank_of(folder: Path, rank: int) -> int:
    """The process of a rank, by its environment."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, env = (process / "cmdline").read_bytes(), (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"LOCAL_RANK={rank}".encode() in env and str(folder).encode() in command and b"accelerate" not in command:
            return int(process.name)
    raise AssertionError(f"no process of rank {rank} in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--divide-batch", type=int, default=1, help="for a try on a small machine")
    parser.add_argument("--precision", default="mixed")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--package", choices=["talaria", "pipeline"], default="talaria")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds that a run may take")
    parser.add_argument("--work", type=Path, help="folder for the model, tokens and runs, kept; a temporary one by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="talaria-recovery-"))
    if not (work / "model").exists():
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from train_data import SHAPES, make_model, make_tokens
        from train_gpus import make_tokenizer

        begun = time.time()
        make_model(work / "model", SHAPES[args.shape], "cpu" if args.shape == "tiny" else "cuda")
        make_tokens(work / "tokens", 256 * 20, SHAPES[args.shape]["vocab_size"], 8000)
        make_tokenizer(work / "tokens" / "tokenizer")
        print(f"model and tokens made in {time.time() - begun:.0f} s", flush=True)
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.only:
        result = run(name, dict(RUNS[name]), args, work)
        results[f"{args.package}: {name}"] = result
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}
        print(f"{args.package}: {name}: {json.dumps(shown)}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    if not args.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
