"""How much of the time is left to new steps where a rank is killed every three minutes, through the product's own launch.

    python benchmarks/goodput.py [--shape qwen3-4b] [--gpus 2] [--kills 90 270] [--seconds 360] [--undisturbed 130] [--json FILE]

First a run without snapshots that nobody disturbs. Then one of `--seconds` after its first step, in which a rank gets SIGKILL so
many seconds after the first step, another rank each time. Goodput is the tokens of the steps that were made, once each, over
those that the undisturbed run would have made in the time. The losses are compared step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from recovery import DRIVER, end, interrupt, make_inputs, rank_of, rows, snapshots

Row = dict[str, Any]
_STUCK = 120.0
"""Seconds without a step after which a run is given up."""


@dataclass
class Kill:
    at: float
    rank: int
    done: list[Row]
    """Steps that were made before."""
    snapshots: list[int]
    """The steps of which the rank had whole snapshots."""
    after: list[Row] = field(default_factory=list)

    def result(self) -> dict[str, Any]:
        last = max(row["step"] for row in self.done)
        new = [row for row in self.after if row["step"] > last]
        before = {row["step"]: row["loss"] for row in self.done}
        again = [abs(before[row["step"]] - row["loss"]) for row in self.after if row["step"] in before]
        return {
            "after_step": last,
            "snapshots": self.snapshots,
            "to_next_step": self.after[0]["time"] - self.at if self.after else None,
            "to_step_not_made_before": new[0]["time"] - self.at if new else None,
            "steps_repeated": len(again),
            "most_that_a_repeated_loss_differs": max(again, default=None),
        }


def train(
    work: Path, settings: dict[str, Any], seconds: float, kills: list[float], *, waiting: bool
) -> tuple[list[Row], list[Kill]]:
    """Train until `seconds` after the end of the first step; return all steps as they stand at the end, and the kills."""
    output = work / "out"
    command = [sys.executable, "-c", DRIVER.format(old=False, waiting=waiting), json.dumps({"name": "r", "train": settings})]
    log = (work / "log-goodput.txt").open("a")
    process = subprocess.Popen([*command, str(work), str(output), str(work / "tokens")], stdout=log, stderr=log)
    began, done = time.time(), list[Kill]()
    found: list[Row] = []
    while process.poll() is None and not (found and time.time() > found[0]["time"] + seconds):
        if time.time() > (found[-1]["time"] if found else began) + _STUCK:
            print(f"no step for {_STUCK:g} s", flush=True)
            break
        time.sleep(0.1)
        found = rows(output / "metrics.jsonl") or found
        if done:
            done[-1].after += [row for row in found if row["time"] > max(done[-1].at, *(r["time"] for r in done[-1].after), 0.0)]
        if found and len(done) < len(kills) and time.time() > found[0]["time"] + kills[len(done)]:
            rank = (settings["num_processes"] - 1 - len(done)) % settings["num_processes"]
            held = list(snapshots(output, rank).values())
            os.kill(rank_of(output, rank), signal.SIGKILL)
            done.append(Kill(time.time(), rank, found, held))
            print(f"killed rank {rank} after step {found[-1]['step']}; snapshots of steps {held}", flush=True)
    print(f"{len(found)} steps in {time.time() - began:.0f} s with start-up, exit code {process.poll()}", flush=True)
    for event in rows(output / "events.jsonl"):
        print(f"  {event['time'] - began:6.1f} s {event['kind']} {event['message'][:120]}", flush=True)
    interrupt(process)
    end(process)
    shutil.rmtree(output, ignore_errors=True)
    return found, done


def speed(found: list[Row]) -> float:
    """Tokens a second from the end of the fifth step to that of the last, with what lies between steps."""
    return sum(row["tokens"] for row in found[5:]) / (found[-1]["time"] - found[4]["time"])


def compared(found: list[Row], undisturbed: list[Row]) -> dict[str, Any]:
    expected = {row["step"]: row for row in undisturbed}
    common = [(row, expected[row["step"]]) for row in found if row["step"] in expected]
    off = [abs(ours["loss"] - theirs["loss"]) for ours, theirs in common]
    return {
        "steps_compared": len(common),
        "rows_equal": all(ours["rows_checksum"] == theirs["rows_checksum"] for ours, theirs in common),
        "losses_differ_by": [statistics.mean(off), max(off)],
    }


def between(one: Kill, other: Kill) -> float:
    """Tokens a second of the steps that one kill's ranks had not made and were made by the other's: a whole period."""
    new = [row["tokens"] for row in other.done if row["step"] > one.done[-1]["step"]]
    return sum(new) / (other.at - one.at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--kills", type=float, nargs="*", default=[90.0, 270.0])
    parser.add_argument("--seconds", type=float, default=360.0)
    parser.add_argument("--undisturbed", type=float, default=130.0, help="seconds of the undisturbed run; 0: none")
    parser.add_argument("--set", nargs="*", default=["snapshot_seconds=3", "snapshot_copies=2"], metavar="KEY=VALUE")
    parser.add_argument("--waiting", action="store_true", help="have ranks in waiting without GPUs too")
    parser.add_argument("--work", type=Path, help="folder for the model, tokens and runs, kept; a temporary one by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="talaria-goodput-"))
    make_inputs(work, args.shape)
    plain = {"num_processes": args.gpus, "global_batch": args.batch, "lr": 1e-5, "save_every": 10**6, "stop_grace": 20}
    undisturbed: list[Row] = []
    if args.undisturbed:
        undisturbed, _ = train(work, plain | {"snapshot_seconds": 0}, args.undisturbed, [], waiting=args.waiting)
        print(f"undisturbed: {len(undisturbed)} steps at {speed(undisturbed):,.0f} tokens/s", flush=True)
    chosen = dict(pair.split("=", 1) for pair in args.set)
    found, kills = train(work, plain | chosen, args.seconds, args.kills, waiting=args.waiting)
    window = found[-1]["time"] - found[0]["time"]
    calm = [row for row in found if not kills or row["time"] < kills[0].at]
    full = speed(undisturbed or calm)
    result = {
        "undisturbed": speed(undisturbed) if undisturbed else None,
        "until_the_first_kill": speed(calm),
        "steps": len(found),
        "seconds": window,
        "goodput": sum(row["tokens"] for row in found[1:]) / window / full,
        "goodput_from_kill_to_kill": [between(one, other) / full for one, other in pairwise(kills)],
        "kills": [kill.result() for kill in kills],
        "steps_once_each": [row["step"] for row in found] == list(range(1, len(found) + 1)),
        **(compared(found, undisturbed) if undisturbed else {}),
    }
    print(json.dumps(result, indent=1), flush=True)
    if args.json:
        both = {"losses": [row["loss"] for row in found], "undisturbed_losses": [row["loss"] for row in undisturbed]}
        times = {"rows": [[row["step"], row["time"] - found[0]["time"], row["seconds"]] for row in found]}
        args.json.write_text(json.dumps(result | both | times, indent=1))
    if not args.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
