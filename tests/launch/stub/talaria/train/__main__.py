"""Stands in for the trainer where a test is about launching: keeps the training folder's contract, learns nothing.

STUB, a JSON object in the environment: steps, seconds per step, ignore_sigterm, print: a variable to show, and `at`:
{step: what happens then}. A kill comes once, after a save.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

options = {"steps": 3, "seconds": 0.05, "ignore_sigterm": False, "at": {}, **json.loads(os.environ.get("STUB", "{}"))}
parser = argparse.ArgumentParser()
for name in ("config", "tokens", "model", "output"):
    parser.add_argument(f"--{name}", required=True)
output = Path(parser.parse_args().output)
rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
(output / f"rank-{rank}.pid").write_text(str(os.getpid()))
if go := os.environ.get("TALARIA_GO"):
    while not Path(go).exists():
        time.sleep(0.02)
    print("a rank in waiting goes on", flush=True)
asked = []
signal.signal(signal.SIGTERM, signal.SIG_IGN if options["ignore_sigterm"] else lambda number, frame: asked.append(number))


def write(**fields):
    if rank == 0:
        old = json.loads((output / "status.json").read_text())
        (output / ".status").write_text(json.dumps({**old, "total_steps": options["steps"], "world_size": world, **fields}))
        (output / ".status").replace(output / "status.json")


def append(name, **fields):
    if rank == 0:
        with (output / name).open("a") as file:
            file.write(json.dumps(fields) + "\n")


saved = output / "checkpoints" / "step"
resumed = saved.exists()
step = int(saved.read_text()) if resumed else 0
append("events.jsonl", kind="resume" if step else "start", step=step, time=time.time(), message="")
if name := options.get("print"):
    print(f"{name} is {os.environ[name]}", flush=True)
print(f"rank {rank} of {world} from step {step}", flush=True)
while step < options["steps"]:
    step += 1
    time.sleep(options["seconds"])
    happens = options["at"].get(str(step))
    if happens == "user":
        write(state="failed", kind="user", step=step, reason="tokens/data.arrow row 3: is empty.")
        sys.exit(1)
    if happens == "raise" and rank == 0:
        raise RuntimeError("the loss is not finite")
    if happens == "kill" and not resumed:
        saved.parent.mkdir(exist_ok=True)
        saved.write_text(str(step - 1))
        os.kill(os.getpid(), signal.SIGKILL)
    append(
        "metrics.jsonl",
        step=step,
        epoch=step / 10,
        loss=1 / step,
        tokens=100,
        supervised_tokens=50,
        seconds=0.05,
        time=time.time(),
    )
    write(state="running", step=step)
    if rank == 0:
        print(f"step {step}\rstep {step} loss {1 / step:.3f}", flush=True)
    if asked:
        time.sleep(options.get("save_seconds", 0))
        if rank == 0:  # or a rank that is asked to leave since another crashed would save what that one did not reach
            saved.parent.mkdir(exist_ok=True)
            saved.write_text(str(step))
        write(state="preempted", step=step, reason="SIGTERM")
        sys.exit(0)
write(state="done", step=step)
