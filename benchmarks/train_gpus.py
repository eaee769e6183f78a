"""What must hold on several GPUs of a machine, shown on them: the same trajectory, checkpoints that move, a stop, a hang.

    python benchmarks/train_gpus.py [--shape qwen3-4b] [--gpus 1 2] [--json FILE]

Trains through the product's own launch (`accelerate launch`). tests/train asserts the same on CPU ranks; speed is
benchmarks/train.py --gpus. Fails loudly: an assertion names what does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from talaria.config.load import parse
from talaria.launch.diagnosis import Preempted
from talaria.launch.stage import launch
from talaria.process.supervisor import Stop

from benchmarks.recovery import rank_of

NOISE = 5e-3
"""bf16 rounds sums differently where they are split differently; relative, of a loss near log(vocabulary)."""


class Runs:
    def __init__(self, work: Path, batch: int, steps: int) -> None:
        self.work, self.batch, self.steps = work, batch, steps

    def train(self, name: str, gpus: int, *, on_step: Any = None, **settings: Any) -> list[dict[str, Any]]:
        """The steps of a run in the folder `name`, which goes on from what is there. `on_step(step, stop, folder)` is called."""
        settings = {
            "global_batch": self.batch,
            "num_processes": gpus,
            "max_tokens_per_device": 4000,
        } | settings
        config = parse({"name": "gpus", "train": {"save_every": 10**6, "lr": 1e-4, "hang_timeout": 60} | settings}, "benchmark")
        folder, stop = self.work / name, Stop()

        def on_look(output: Path) -> None:
            if found := steps(output):
                if found[-1]["step"] >= self.steps:
                    stop.kill()  # what would follow, a checkpoint and an export, is not looked at
                elif on_step:
                    on_step(found[-1]["step"], stop, output)

        start = time.monotonic()
        try:
            launch(
                config, self.work / "tokens", self.work / "model", folder, on_line=lambda line: None, on_look=on_look, stop=stop
            )
        except Preempted as error:
            print(f"{name}: {error}", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s with start-up", flush=True)
        return steps(folder)[: self.steps]


def steps(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def compare(name: str, found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> dict[str, Any]:
    """The same rows at every step, and losses within bf16's rounding."""
    assert [step["rows_checksum"] for step in found] == [step["rows_checksum"] for step in expected], f"{name}: other rows"
    ours, theirs = (np.array([step["loss"] for step in run]) for run in (found, expected))
    off = np.abs(ours / theirs - 1)
    print(
        f"{name:32} rows equal, losses {ours[0]:.4f} -> {ours[-1]:.4f}, off by {off.mean():.1e}, at most {off.max():.1e}",
        flush=True,
    )
    assert off.max() < NOISE, f"{name}: losses differ by {off.max():.1e}"
    return {"losses": ours.tolist(), "off_mean": off.mean(), "off_max": off.max()}


def trajectory(runs: Runs, counts: list[int]) -> dict[str, Any]:
    """Every layout beside one GPU, which itself is run twice in micro-batches of two sizes: what rounding alone does."""
    one = runs.train("one", 1)
    results = {"one": {"losses": [step["loss"] for step in one]}}
    layouts = {"one, smaller micro-batches": (1, "auto")} if counts else {}
    layouts |= {
        f"{gpus} GPUs, {sharding}": (gpus, sharding) for gpus in counts if gpus > 1 for sharding in ("shard", "replicate")
    }
    for name, (gpus, sharding) in layouts.items():
        budget = 4000 if gpus > 1 else 2048
        found = runs.train(name.replace(" ", "-"), gpus, sharding=sharding, max_tokens_per_device=budget)
        results[name] = compare(name, found, one)
        shutil.rmtree(runs.work / name.replace(" ", "-"))
    return results


def elastic(runs: Runs, counts: list[int], one: list[float]) -> dict[str, Any]:
    """Stopped by SIGTERM on the most GPUs, gone on with one, stopped, gone on with the most: the rows and losses of one run."""

    def stop_at(last: int) -> Any:
        return lambda step, stop, folder: stop.request() if step >= last and not stop.requested else None

    most = max(counts)
    for gpus, last in ((most, runs.steps // 3), (1, 2 * runs.steps // 3), (most, None)):
        settings = {"num_processes": 0} if gpus == most else {"num_processes": 1}
        found = runs.train("moved", gpus, on_step=stop_at(last) if last else None, **settings)
        print(f"moved: {len(found)} steps, the last ones on {gpus}", flush=True)
    off = np.abs(np.array([step["loss"] for step in found]) / np.array(one) - 1)
    assert [step["step"] for step in found] == list(range(1, runs.steps + 1))
    print(f"moved: losses off by {off.mean():.1e}, at most {off.max():.1e} (bound {NOISE:g})", flush=True)
    assert off.max() < NOISE, f"after moving, losses differ by {off.max():.1e}"
    return {"off_mean": off.mean(), "off_max": off.max()}


def hang(runs: Runs, gpus: int) -> dict[str, Any]:
    """One rank stands still: all are ended by the watchdog, with a sentence, and started again."""
    frozen: list[float] = []

    def freeze(step: int, stop: Stop, folder: Path) -> None:
        if step >= 5 and not frozen:
            os.kill(rank_of(folder, gpus - 1), signal.SIGSTOP)
            frozen.append(time.time())

    found = runs.train("hang", gpus, on_step=freeze, hang_timeout=15)
    events = [json.loads(line) for line in (runs.work / "hang" / "events.jsonl").read_text().splitlines()]
    failed = next(event for event in events if event["kind"] == "failed")
    assert frozen, "no rank stood still"
    assert "(train.hang_timeout)" in failed["message"], failed
    assert [step["step"] for step in found] == list(range(1, runs.steps + 1))
    seconds = failed["time"] - frozen[0]
    to_step = next(row["time"] for row in found if row["time"] > failed["time"]) - frozen[0]
    print(f"hang: noticed after {seconds:.0f} s, the next step after {to_step:.0f} s: {failed['message']}", flush=True)
    return {"seconds": seconds, "to_next_step": to_step, "message": failed["message"]}


def make_tokenizer(folder: Path) -> None:
    """One of three tokens: an exported model wants a tokenizer beside it."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    words.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    folder.mkdir()
    words.save(str(folder / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="small")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", nargs="+", choices=["trajectory", "elastic", "hang"], default=["trajectory", "elastic", "hang"])
    parser.add_argument("--work", type=Path, help="folder for the model, tokens and runs, kept; a temporary one by default")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from benchmarks.train import machine
    from benchmarks.train_data import SHAPES, make_model, make_tokens

    work = args.work or Path(tempfile.mkdtemp(prefix="talaria-gpus-"))
    if not (work / "model").exists():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # this process is to leave the GPUs' memory alone
            pool.submit(make_model, work / "model", SHAPES[args.shape], device).result()
        make_tokens(work / "tokens", 2 * args.batch * args.steps, SHAPES[args.shape]["vocab_size"], 2000)
        make_tokenizer(work / "tokens" / "tokenizer")
    runs = Runs(work, args.batch, args.steps)
    results: dict[str, Any] = {}
    if "hang" in args.only:
        results["hang"] = hang(runs, max(args.gpus))
    if {"trajectory", "elastic"} & set(args.only):
        results["trajectory"] = trajectory(runs, args.gpus if "trajectory" in args.only else [])
    if "elastic" in args.only:
        results["elastic"] = elastic(runs, args.gpus, results["trajectory"]["one"]["losses"])
    results["machine"] = machine()  # last: it makes a context on a GPU
    print(json.dumps(results["machine"]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    if not args.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
