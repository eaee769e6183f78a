"""What a checkpoint and a dead rank cost, and how fast several GPUs train, through the product's own launch.

    python benchmarks/recovery.py [--shape qwen3-4b] [--gpus 2] [--only NAME ...] [--json FILE]

Each run prints the median speed of the second half of its steps (the first seconds of a run go on beside the making of host
memory), the slowest of its first ten steps over that median, the seconds from the launch to the first step, the longest step at a
save and beside its writing, and the host memory that the state took. Where a rank was killed: the seconds until the next step,
and until the next one that had not been made before. Where a run goes to its end: the seconds from the last step until it was
done, and what was written by then. `--package pipeline` measures a checkout from before November 2026 in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
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

SAVED = {"keep_last": 1, "snapshot_seconds": 10.0}
_WHOLE = 4.0
"""Seconds after the copying of a snapshot before which no rank is killed: with one copy all is lost while it is renewed."""
LONG = {"steps": 4, "save_every": 10**6, "lr": 1e-5}
RUNS: dict[str, dict[str, Any]] = {
    "one": {"gpus": 1, "global_batch": 128, "steps": 12},
    "128 a card": {"global_batch": 256, "steps": 10},
    "64": {"global_batch": 64, "steps": 40},
    "32": {"global_batch": 32, "steps": 60},
    "sharded 64": {"global_batch": 64, "steps": 40, "sharding": "shard"},
    "save and kill": {"global_batch": 128, "steps": 44, "kill_after": 38, "to_end": True, "save_every": 22, **SAVED},
    "end": {"global_batch": 128, "steps": 6, "to_end": True},
    "kill": {"global_batch": 128, "steps": 56, "kill_after": 44, **SAVED},
    "one, kill": {"gpus": 1, "global_batch": 64, "steps": 50, "kill_after": 32, **SAVED, "snapshot_seconds": 15.0},
    "one, save and kill": {"gpus": 1, "global_batch": 64, "steps": 36, "kill_after": 30, "save_every": 14, **SAVED},
    "64k over two": {**LONG, "length": 65536, "global_batch": 1, "context_parallel_size": 2, "max_tokens_per_device": 32768},
    "16k over two": {**LONG, "length": 16384, "global_batch": 4, "context_parallel_size": 2, "max_tokens_per_device": 8192},
    "16k": {**LONG, "gpus": 1, "length": 16384, "global_batch": 4, "max_tokens_per_device": 16384},
}
"""Settings under `train`, beside: gpus; steps, after which a run is ended, or, with to_end, is done; kill_after: the step after
which the last rank gets SIGKILL; length: tokens of every conversation, instead of lengths like OpenHermes-2.5's."""
DRIVER = """
import json, sys
from pathlib import Path
if {old}:
    from pipeline import settings
    from pipeline.train.launch import launch
else:
    from talaria.config import load as settings
    from talaria.launch import stage
    launch = stage.launch
    if {waiting}:
        stage.worth_waiting, stage.standby._AFTER = lambda *_: True, 1.0
tree, work, output = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
tokens = Path(sys.argv[4])
launch(settings.parse(tree, "benchmark"), tokens, work / "model", output, on_line=lambda line: print(line, flush=True))
"""


def run(name: str, options: dict[str, Any], args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """One training in a folder of its own."""
    chosen = {"precision": args.precision, "lr": 1e-5, "save_every": 10**6, "stop_grace": 20, **options}
    wanted, kill_after, to_end = chosen.pop("steps"), chosen.pop("kill_after", None), chosen.pop("to_end", False)
    chosen["num_processes"] = chosen.pop("gpus", args.gpus)
    chosen["global_batch"] = max(1, chosen["global_batch"] // args.divide_batch)
    tokens = work / (f"tokens-{length}" if (length := chosen.pop("length", 0)) else "tokens")
    for key in ("max_tokens_per_device",) if args.shape == "tiny" else ():
        chosen.pop(key, None)
    if to_end:
        chosen["max_steps"] = wanted
    old = args.package == "pipeline"
    for key in ("snapshot_seconds",) if old else ():
        chosen.pop(key, None)
    output = work / f"out-{os.getpid()}"  # several may run at once, on cards of their own
    driver = DRIVER.format(old=old, waiting=args.waiting)
    command = [sys.executable, "-c", driver, json.dumps({"name": "r", "train": chosen}), str(work), str(output), str(tokens)]
    watched = Watched(output, time.time(), memory("Shmem"))
    log = (work / f"log-{os.getpid()}.txt").open("a")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    while process.poll() is None and time.time() - watched.began < args.limit:
        time.sleep(0.05)
        watched.look()
        if kill_after and watched.killed is None and watched.last >= kill_after and snapshot_age(output) > _WHOLE:
            watched.snapshots = list(snapshots(output).values())
            os.kill(rank_of(output, chosen["num_processes"] - 1), signal.SIGKILL)
            watched.killed, watched.undone = time.time(), {row["step"]: row for row in watched.found}
            for marker in output.glob("checkpoints/*/complete.json"):  # the disk may have no room for two and what is cut off
                shutil.rmtree(marker.parent)
        if watched.last >= wanted and not to_end:
            break
    if process.poll() is None:
        if watched.last < wanted or to_end:
            print(f"{name}: ended after {args.limit:g} s", flush=True)
        interrupt(process)
    end(process)
    ended = time.time()
    result = {**watched.result(), **summary(watched)}
    if to_end:
        result |= at_the_end(watched, ended, work)
    result["rows"] = [[row["step"], row["time"] - watched.began, row["seconds"]] for row in watched.found]
    shutil.rmtree(output, ignore_errors=True)
    return result


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """What would follow, a checkpoint and an export, is not looked at."""
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)


def end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()  # what it started ends with it
        process.wait()


class Watched:
    """What can be seen of a run from outside, several times a second."""

    def __init__(self, output: Path, began: float, shared: int) -> None:
        self.output, self.began, self.shared = output, began, shared
        self.found: list[dict[str, Any]] = []
        self.undone: dict[int, dict[str, Any]] = {}
        """The steps that were made before a kill."""
        self.most = 0
        self.first: float | None = None
        self.killed: float | None = None
        self.snapshots: list[int] = []
        """The steps of which there were snapshots at the kill."""
        self.beyond: float | None = None
        self.written: dict[int, float] = {}
        """Step -> when its checkpoint was seen to be whole."""

    @property
    def last(self) -> int:
        return self.found[-1]["step"] if self.found else 0

    def look(self) -> None:
        self.found = rows(self.output / "metrics.jsonl")
        self.most = max(self.most, memory("Shmem") - self.shared)
        if self.found:
            self.first = self.first or self.found[0]["time"] - self.began
        if self.killed and self.beyond is None and self.last > max(self.undone):
            self.beyond = self.found[-1]["time"] - self.killed
        for marker in self.output.glob("checkpoints/*/complete.json"):
            self.written.setdefault(int(marker.parent.name.removeprefix("step-")), time.time())

    def written_until(self, step: int, begun: float) -> float:
        """When the writing of a checkpoint ended, by a kill too; a minute after its begin where it was not seen to."""
        cut = self.killed if self.killed and begun < self.killed else math.inf
        return min(self.written.get(step, begun + 60), cut)

    def stretches(self) -> list[list[dict[str, Any]]]:
        """The steps that were made without an interruption, each time."""
        if self.killed is None:
            return [self.found]
        return [list(self.undone.values()), [row for row in self.found if row["time"] > self.killed]]

    def result(self) -> dict[str, Any]:
        made = [{"launch_to_first_step_ends": self.first, "losses": [row["loss"] for row in self.found]}]
        if self.killed:
            after = [row["time"] for row in self.found if row["time"] > self.killed]
            repeated = [row for row in self.found if row["step"] in self.undone and row["time"] > self.killed]
            again = [self.undone[row["step"]]["loss"] - row["loss"] for row in repeated]
            made.append(
                {
                    "snapshots_at_the_kill": self.snapshots,
                    "killed_to_next_step": after[0] - self.killed if after else None,
                    "killed_to_step_not_made_before": self.beyond,
                    "steps_repeated": len(repeated),
                    "most_that_a_repeated_loss_differs": max(map(abs, again), default=None),
                }
            )
        return {key: value for part in made for key, value in part.items()}


def summary(watched: Watched) -> dict[str, Any]:
    found, events = watched.found, rows(watched.output / "events.jsonl")
    if len(found) < 4:
        return {"failed": f"{len(found)} steps", "events": events}
    settled = found[len(found) // 2 :]
    saves = {event["step"]: event["time"] for event in events if event["kind"] == "checkpoint"}
    median = statistics.median(row["seconds"] for row in settled)
    made = watched.stretches()
    beside = [
        row["seconds"]
        for rows_made in made
        for row in rows_made
        for step, begun in saves.items()
        if begun < row["time"] - row["seconds"] and row["time"] < watched.written_until(step, begun) and row["step"] > step + 1
    ]
    return {
        "tokens_per_second": statistics.median(row["tokens_per_second"] for row in settled),
        "mfu": statistics.median(row["mfu"] or 0 for row in settled),
        "median_step": median,
        "slowest_of_ten_over_median": max(row["seconds"] for row in found[:10]) / median,
        "slowest_of_the_second_half": max(row["seconds"] for row in settled) / median,
        "shared_memory_gb": watched.most / 1e9,
        "gaps_at_saves": [
            b["time"] - a["time"] - b["seconds"]
            for rows_made in made
            for a, b in itertools.pairwise(rows_made)
            if a["step"] in saves
        ],
        "first_steps_after_saves": [b["seconds"] for r in made for a, b in itertools.pairwise(r) if a["step"] in saves],
        "steps_beside_writes": {"count": len(beside), "median": statistics.median(beside) / median} if beside else None,
        "seconds_of_writing": {step: watched.written[step] - begun for step, begun in saves.items() if step in watched.written},
        "events": [f"{event['time'] - watched.began:.1f} s {event['kind']} {event['message'][:110]}" for event in events],
    }


def at_the_end(watched: Watched, ended: float, work: Path) -> dict[str, Any]:
    """After the last step: what was written, how long the disk takes for as much, and how long it was until the run was done."""
    last = watched.found[-1]["time"]
    done = (watched.output / "status.json").stat().st_mtime
    events = rows(watched.output / "events.jsonl")
    begun = max(event["time"] for event in events if event["kind"] == "checkpoint")
    checkpoint = sum(
        path.stat().st_size for path in watched.output.glob("checkpoints/*/*.safetensors") if path.stat().st_mtime > begun
    )
    model = sum(path.stat().st_size for path in watched.output.glob("model/*.safetensors"))
    speed = disk_speed(work)
    return {
        "last_step_to_done": done - last,
        "last_step_to_end_of_launch": ended - last,
        "written_gb": [checkpoint / 1e9, model / 1e9],
        "disk_gb_per_second": speed / 1e9,
        "disks_own_seconds": (checkpoint + model) / speed,
    }


def disk_speed(folder: Path, size: int = 4 << 30) -> float:
    """Bytes a second of one file that is written and flushed."""
    chunk, path = os.urandom(1 << 24), folder / "speed"
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(size // len(chunk)):
            file.write(chunk)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begun
    path.unlink()
    return size / seconds


def make_inputs(work: Path, shape: str) -> None:
    """A model and tokens, where they are not there yet."""
    if (work / "model").exists():
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from train_data import SHAPES, make_model, make_tokens
    from train_gpus import make_tokenizer

    begun = time.time()
    sizes = SHAPES[shape]
    make_model(work / "model", sizes, "cpu" if shape == "tiny" else "cuda")
    make_tokens(work / "tokens", 256 * 160, sizes["vocab_size"], 8000)
    make_tokenizer(work / "tokens" / "tokenizer")
    for length in {options["length"] for options in RUNS.values() if "length" in options}:
        made = 512 if shape == "tiny" else length
        make_tokens(work / f"tokens-{length}", 24, sizes["vocab_size"], made, length=made)
        make_tokenizer(work / f"tokens-{length}" / "tokenizer")
    print(f"model and tokens made in {time.time() - begun:.0f} s", flush=True)


def memory(name: str) -> int:
    """Bytes of a line of /proc/meminfo."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def rank_of(folder: Path, rank: int) -> int:
    """The process of a rank, not of one in waiting: it leaves its pid where the launcher looks for it."""
    return int(_pid_note(folder, rank).read_text())


def snapshots(folder: Path, rank: int = 0) -> dict[Path, int]:
    """The notes of a rank's whole snapshots -> the step that each holds."""
    found = {}
    for note in _pid_note(folder, rank).parent.glob(f"rank-{rank}*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[note] = json.loads(note.read_text())["progress"]["step"]
    return found


def snapshot_age(folder: Path) -> float:
    """Seconds since rank 0's newest snapshot was whole; minus infinity where none is."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - max((note.stat().st_mtime for note in snapshots(folder)), default=math.inf)
    return -math.inf


def _pid_note(folder: Path, rank: int) -> Path:
    for note in Path("/dev/shm").glob(f"talaria-*/rank-{rank}.pid"):
        with contextlib.suppress(FileNotFoundError):  # another run's rank, which has died
            if str(folder).encode() in Path(f"/proc/{int(note.read_text())}/cmdline").read_bytes().split(b"\0"):
                return note
    raise AssertionError(f"no process of rank {rank} in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--divide-batch", type=int, default=1, help="for a try on a small machine")
    parser.add_argument("--precision", default="mixed")
    parser.add_argument("--only", nargs="*", choices=list(RUNS), default=list(RUNS), help="none: make the inputs alone")
    parser.add_argument("--package", choices=["talaria", "pipeline"], default="talaria")
    parser.add_argument("--waiting", action="store_true", help="have ranks in waiting without GPUs too")
    parser.add_argument("--limit", type=float, default=200.0, help="seconds that a run may take")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="seconds after which no further run is begun")
    parser.add_argument("--work", type=Path, help="folder for the model, tokens and runs, kept; a temporary one by default")
    parser.add_argument("--json", type=Path)
    args, started = parser.parse_args(), time.time()
    work = args.work or Path(tempfile.mkdtemp(prefix="talaria-recovery-"))
    make_inputs(work, args.shape)
    results = json.loads(args.json.read_text()) if args.json and args.json.exists() else {}
    for name in args.only:
        if time.time() - started > args.stop_after:
            print(f"{name}: not begun", flush=True)
            continue
        result = run(name, dict(RUNS[name]), args, work)
        results[f"{args.package}: {name}"] = result
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}
        shown = {key: value for key, value in shown.items() if key not in ("losses", "rows")}
        print(f"{args.package}: {name}: {json.dumps(shown)}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    if not args.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
