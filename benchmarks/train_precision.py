"""What lower precision does to the loss: one training in each mode from the same random weights on the same conversations.

    python benchmarks/train_precision.py TOKENS --steps 300 --json benchmarks/results/train-precision.json

TOKENS is a tokens folder of `talaria tokenize` with real text, so that there is something to learn. Each mode runs in a
process of its own. What is printed and kept: losses of every step, and the largest and the mean relative difference to fp32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "mixed": {"precision": "mixed"},
    "bf16": {"precision": "bf16"},
    "mixed, fp8": {"precision": "mixed", "fp8": "true"},
    "bf16, fp8": {"precision": "bf16", "fp8": "true"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES), help="modes beside fp32")
    parser.add_argument("--shape", default="small", help="a shape of benchmarks/train_data.py")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64, help="conversations a step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--json", type=Path, help="write the losses here")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        args.json.write_text(json.dumps(train(args)))
        return
    with tempfile.TemporaryDirectory() as work:
        results = run_all(args, Path(work))
    if args.json:
        args.json.write_text(json.dumps(results))


def run_all(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    import torch

    from benchmarks.train import machine
    from benchmarks.train_data import SHAPES, make_model

    make_model(work / "model", SHAPES[args.shape], "cuda" if torch.cuda.is_available() else "cpu")
    losses: dict[str, list[float]] = {}
    for name in sorted({*args.only, "fp32"}, key=list(MODES).index):
        out = work / "losses.json"
        inner = ["--run", name, "--model", str(work / "model"), "--json", str(out)]
        subprocess.run([sys.executable, __file__, *sys.argv[1:], *inner], check=True)
        losses[name] = json.loads(out.read_text())
        apart = [abs(a - b) / b for a, b in zip(losses[name], losses["fp32"], strict=True)]
        largest, mean = max(apart), sum(apart) / len(apart)
        print(f"{name:12} last loss {losses[name][-1]:.4f}  from fp32: at most {largest:.2%}, mean {mean:.2%}", flush=True)
    settings = {"shape": args.shape, "steps": args.steps, "batch": args.batch, "lr": args.lr}
    return {"machine": machine(), "settings": settings, "losses": losses}


def train(args: argparse.Namespace) -> list[float]:
    from benchmarks.train_runs import run_ours

    settings = {"global_batch": args.batch, "lr": args.lr, "min_lr": args.lr / 10, **MODES[args.run]}
    output = args.model.parent / args.run.replace(", ", "-")
    losses: list[float] = run_ours(args.model, args.tokens, output, settings, args.steps, warm=1, profile=False)["losses"]
    return losses


if __name__ == "__main__":
    main()
