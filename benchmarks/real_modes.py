"""A model that was really trained, on real chats, in every way that one GPU trains it, beside TRL and a plain loop.

    python benchmarks/real_model.py --model SMOLLM2 --data CHATS.json --characters 100000 --rows 6000 --make-tokens TOKENS
    python benchmarks/real_modes.py --model SMOLLM2 --tokens TOKENS --steps 200 --json benchmarks/results/real-modes.json

The same rows in the same order each. Prints and keeps the losses of every step, the held-out loss in fp32 before and after,
how far the weights are from the plain loop's, and an answer. The plain loop and TRL train in fp32; "TRL, bf16" is TRL under
autocast, its usual mode.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from talaria.config.load import parse
from talaria.tokenization.dataset import open_tokens
from talaria.train.distributed import process_group
from talaria.train.distributed.process_group import ProcessGroup
from talaria.train.telemetry.watchdog import StopSignal, Watchdog
from talaria.train.train_state import TrainJob
from talaria.train.trainer import Trainer
from transformers import AutoModelForCausalLM

from benchmarks.real_model import answer, apart, held_out_loss, in_fp32, plain, trl
from benchmarks.train import machine

Run = tuple[list[float], Any]
LORA = {"lora": {"rank": 16, "alpha": 32}, "lr": 5e-4, "min_lr": 5e-5}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain loop": {"precision": "fp32"},
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
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16, help="conversations a step")
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--only", nargs="+", choices=SETTINGS)
    parser.add_argument("--json", type=Path, help="write the results here, after every run")
    parser.add_argument("--keep", type=Path, help="leave the model that was trained with fp32 masters (mixed) here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="talaria-real-modes-") as root:
        compare(args, Path(root), process_group.join(600))


def compare(args: argparse.Namespace, root: Path, group: ProcessGroup) -> None:
    base = in_fp32(args.model, root / "base")
    held_out = open_tokens(args.tokens)["validation"]
    assert held_out is not None
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(group.device)
    before = {"held_out": held_out_loss(start, held_out), "answer": answer(start, base)}
    about = {"steps": args.steps, "batch": args.batch, "lr": args.lr, "held_out": len(held_out)}
    results: dict[str, Any] = {"machine": machine(), "settings": about, "base": before, "runs": {}}
    print(results, flush=True)
    reference: Any = None
    for name in args.only or SETTINGS:
        begin = time.perf_counter()
        train = {"global_batch": args.batch, "max_steps": args.steps, "lr": args.lr, "min_lr": args.lr / 10}
        train |= {"warmup_fraction": 0.1, "max_tokens_per_device": 4096, **SETTINGS[name]}
        job = TrainJob(parse({"name": "real-modes", "train": train}, "benchmark"), args.tokens, base, root / "out" / name)
        losses, model = road(name, group)(job)
        run = {"losses": losses, "seconds": time.perf_counter() - begin}
        run |= {"held_out": held_out_loss(model, held_out), "answer": answer(model, base)}
        reference = reference or model
        run["weights_apart"], run["padding_row_apart"] = apart(model, reference, start)
        results["runs"][name] = run
        print(line(name, results["runs"]), flush=True)
        if args.json:
            args.json.write_text(json.dumps(results))
        if args.keep and name == "mixed":
            (job.output / "model").resolve().rename(args.keep)


def road(name: str, group: ProcessGroup) -> Callable[[TrainJob], Run]:
    if name == "plain loop":
        return plain
    if name.startswith("TRL"):
        return lambda job: trl(job, bf16=name != "TRL")
    return lambda job: ours(job, group)


def ours(job: TrainJob, group: ProcessGroup) -> Run:
    job.output.mkdir(parents=True)
    Trainer(job, group, StopSignal(), Watchdog(3600.0, print)).run()
    steps = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    model = AutoModelForCausalLM.from_pretrained(job.output / "model", dtype=torch.float32).to(group.device)
    return [step["loss"] for step in steps], model


def line(name: str, runs: dict[str, Any]) -> str:
    run = runs[name]
    text = f"{name:12} {run['losses'][0]:.5f} ... {run['losses'][-1]:.5f}  held out {run['held_out']:.5f}"
    for other in ("plain loop", "TRL", "fp32", "TRL, LoRA"):
        if other in runs and other != name:
            text += f" ({run['held_out'] / runs[other]['held_out'] - 1:+.2%} from {other})"
    for first in (50, len(run["losses"])):
        pairs = list(zip(run["losses"][:first], next(iter(runs.values()))["losses"], strict=False))
        differences = [abs(a - b) / b for a, b in pairs]
        text += f"  first {first}: at most {max(differences):.2%}, mean {sum(differences) / len(differences):.2%}"
    text += f"  weights {run['weights_apart']:.1e} apart, padding row {run['padding_row_apart']:.1e}; {run['seconds']:.0f} s"
    return f"{text}  {run['answer']!r}"


if __name__ == "__main__":
    main()
