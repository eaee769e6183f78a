"""A model that was really trained, on real chats, in every way that one GPU trains it, beside TRL and a plain loop.

    python benchmarks/real_model.py --model SMOLLM2 --data CHATS.json --characters 1200 --rows 14500 --make-tokens TOKENS
    python benchmarks/real_modes.py --model SMOLLM2 --tokens TOKENS --work WORK --json benchmarks/results/real-modes.json

The same rows in the same order each, in a process each, of which --jobs run at the same time. The plain loop and TRL take a
batch in --parts, as whole ones take 52 and 37 GB. Prints and keeps the losses of every step, the held-out loss in fp32 before and
after, that which Talaria found itself, how far the weights are from the plain loop's, and an answer. The plain loop and TRL train
in fp32; "TRL, bf16" is TRL under autocast, its usual mode. What was trained stays in WORK/MODE/model.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from talaria.config.load import parse
from talaria.tokenization.dataset import Tokens, open_tokens
from talaria.train.distributed import process_group
from talaria.train.kernels import linear
from talaria.train.telemetry.watchdog import StopSignal, Watchdog
from talaria.train.train_state import TrainJob
from talaria.train.trainer import Trainer
from transformers import AutoModelForCausalLM

from benchmarks.real_model import answer, apart, held_out_loss, in_fp32, plain, trl
from benchmarks.train import machine

Run = tuple[list[float], Any]
LORA = {"lora": {"rank": 16, "alpha": 32}, "lr": 5e-4, "min_lr": 5e-5}
PLAIN = "plain loop"
SETTINGS: dict[str, dict[str, Any]] = {
    PLAIN: {"precision": "fp32"},
    "TRL": {"precision": "fp32"},
    "fp32": {"precision": "fp32"},
    "mixed": {"precision": "mixed"},
    "bf16": {"precision": "bf16"},
    "mixed, fp8": {"precision": "mixed", "fp8": "true"},
    "bf16, fp8": {"precision": "bf16", "fp8": "true"},
    "TRL, bf16": {"precision": "mixed"},
    "LoRA": {"precision": "mixed", **LORA},
    "TRL, LoRA": {"precision": "mixed", **LORA},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for what is trained")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64, help="conversations a step")
    parser.add_argument("--parts", type=int, default=4, help="of a batch, one after the other, in the plain loop and TRL")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time; their seconds then say little")
    parser.add_argument("--json", type=Path, help="write the results here, after every run")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        train(args)
    else:
        train_all(args)


def train_all(args: argparse.Namespace) -> None:
    base = in_fp32(args.model, args.work / "base")
    start = load(base).to(device())
    about = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "held_out": len(held_out(args))}
    before = {"held_out": held_out_loss(start, held_out(args)), "answer": answer(start, base)}
    results: dict[str, Any] = {"machine": machine(), "settings": about, "base": before, "runs": {}}
    print(results, flush=True)
    start = start.cpu()
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {pool.submit(in_own_process, name): name for name in args.only}
        for run in as_completed(runs):
            name = runs[run]
            if code := run.result().returncode:
                print(f"{name}: failed with exit code {code}", flush=True)
                continue
            results["runs"][name] = trained(args, name)
            print(f"{name}: held out {results['runs'][name]['held_out']:.5f}", flush=True)
            keep(args, results)
    results["runs"] = {name: results["runs"][name] for name in SETTINGS if name in results["runs"]}
    for name, one in results["runs"].items():
        if (reference := args.work / PLAIN / "model").exists():
            weights, row = apart(load(args.work / name / "model"), load(reference), start)
            one |= {"weights_apart": weights, "padding_row_apart": row}
        print(line(name, results["runs"]), flush=True)
        keep(args, results)


def keep(args: argparse.Namespace, results: dict[str, Any]) -> None:
    if args.json:
        args.json.write_text(json.dumps(results))


def trained(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what a run left and what its model is worth."""
    folder = args.work / name
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    model = load(folder / "model").to(device())
    return run | {"held_out": held_out_loss(model, held_out(args)), "answer": answer(model, args.work / "base")}


def in_own_process(name: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--run", name], check=False)


def train(args: argparse.Namespace) -> None:
    """Train in one mode; leaves the model and run.json in the folder of its name."""
    linear.NARROWEST = 1  # what 8 bits do is measured however small the model is
    begin, name = time.perf_counter(), args.run
    settings = {"global_batch": args.batch, "max_steps": args.steps, "lr": args.lr, "min_lr": args.lr / 10}
    settings |= {"warmup_fraction": 0.1, "max_tokens_per_device": 16384, **SETTINGS[name]}
    config = parse({"name": "real-modes", "train": settings}, "benchmark")
    # As its files have it, as users train it; those who want fp32 get it in fp32.
    base = args.model if road(name, 1) is ours and config.train.precision != "fp32" else args.work / "base"
    folder = args.work / name
    losses, model = road(name, args.parts)(TrainJob(config, args.tokens, base, folder))
    seconds = time.perf_counter() - begin
    if not (folder / "model").exists():
        model.save_pretrained(folder / "model")
    run: dict[str, Any] = {"losses": losses, "seconds": seconds}
    if (own := folder / "evals.jsonl").exists():
        run["own_held_out"] = json.loads(own.read_text().splitlines()[-1])["loss"]
    (folder / "run.json").write_text(json.dumps(run))


def held_out(args: argparse.Namespace) -> Tokens:
    tokens = open_tokens(args.tokens)["validation"]
    assert tokens is not None
    return tokens


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def road(name: str, parts: int) -> Callable[[TrainJob], Run]:
    if name == PLAIN:
        return lambda job: plain(job, parts=parts)
    if name.startswith("TRL"):
        return lambda job: trl(job, bf16=name != "TRL", parts=parts)
    return ours


def ours(job: TrainJob) -> Run:
    job.output.mkdir(parents=True)
    Trainer(job, process_group.join(600), StopSignal(), Watchdog(3600.0, print)).run()
    steps = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    return [step["loss"] for step in steps], None


def line(name: str, runs: dict[str, Any]) -> str:
    run = runs[name]
    text = f"{name:12} {run['losses'][0]:.5f} ... {run['losses'][-1]:.5f}  held out {run['held_out']:.5f}"
    for other in (PLAIN, "TRL", "fp32", "TRL, LoRA"):
        if other in runs and other != name:
            text += f" ({run['held_out'] / runs[other]['held_out'] - 1:+.2%} from {other})"
    for first in (50, len(run["losses"])):
        pairs = list(zip(run["losses"][:first], next(iter(runs.values()))["losses"], strict=False))
        differences = [abs(a - b) / b for a, b in pairs]
        text += f"  first {first}: at most {max(differences):.2%}, mean {sum(differences) / len(differences):.2%}"
    if "own_held_out" in run:
        text += f"  its own held out {run['own_held_out']:.5f}"
    if "weights_apart" in run:
        text += f"  weights {run['weights_apart']:.1e} apart, padding row {run['padding_row_apart']:.1e}"
    return f"{text}; {run['seconds']:.0f} s  {run['answer']!r}"


if __name__ == "__main__":
    main()
