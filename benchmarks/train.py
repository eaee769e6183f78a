"""Training speed: this project's trainer and TRL's SFTTrainer on one card, the same model shape and lengths, in one run.

TRL gets Liger kernels, packing and torch's variable-length attention, which this file registers for it, or this project's way to
cuDNN (trl-cudnn). trl-pip is what it does with packages alone.

    python benchmarks/train.py                       # every run of the table
    python benchmarks/train.py --only lora trl-lora qwen2-3b trl-qwen2-3b
    python benchmarks/train.py --only mixed --profile
    python benchmarks/train.py --only bf16 --gpus 2 --set global_batch=256

Each run is a process of its own, so that none inherits another's memory. MFU is model FLOPs (metrics.FlopCount: attention
inside conversations only, recomputation not counted) over the cards' dense bf16 peak. With --gpus, our runs are on
several cards of this machine, and tokens/s are all cards' together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.train_data import SHAPES, TINY, make_model, make_tokens


@dataclass(frozen=True)
class Ours:
    """A run of this project's trainer: `train.*` settings, and the runs of TRL that it is compared with."""

    settings: dict[str, Any]
    peers: tuple[str, ...]
    shape: str = "qwen3-4b"
    length: int = 0
    """Tokens of every conversation; 0: lengths like OpenHermes-2.5's."""


@dataclass(frozen=True)
class Trl:
    """A run of TRL: micro-batches of `max_length` tokens, `accumulate` of them a step."""

    attention: str = "FlashAttention-2"
    max_length: int = 8192
    accumulate: int = 7
    lora: int = 0
    """Rank of the adapters; 0: all parameters are trained."""
    checkpointing: bool = False
    shape: str = "qwen3-4b"
    length: int = 0


FULL = "trl-varlen", "trl-cudnn", "trl-pip"
BF16 = {"precision": "bf16", "max_tokens_per_device": 14336}
OURS = {
    "bf16": Ours(BF16, FULL),
    "mixed": Ours({"precision": "mixed"}, FULL),
    "mixed-fp8": Ours({"precision": "mixed", "fp8": "true"}, FULL),
    "bf16-fp8": Ours({**BF16, "fp8": "true"}, FULL),
    "lora": Ours({"precision": "mixed", "max_tokens_per_device": 8192, "lora": {"rank": 16, "alpha": 32}}, ("trl-lora",)),
    "qwen2-3b": Ours(BF16, ("trl-qwen2-3b",), "qwen2.5-3b"),
    "llama-3b": Ours(BF16, ("trl-llama-3b",), "llama-3.2-3b"),
    "mistral-3b": Ours(BF16, ("trl-mistral-3b",), "mistral-3b"),
    "qwen3-8b-offload": Ours({"precision": "mixed", "offload": "optimizer"}, (), "qwen3-8b"),
    "long-32k": Ours({"precision": "bf16", "max_tokens_per_device": 32768, "global_batch": 1}, ("trl-long-32k",), length=32768),
    "long-32k-mixed": Ours({"max_tokens_per_device": 32768, "global_batch": 1}, ("trl-long-32k",), length=32768),
}
LONGEST = 4000
"""Longer conversations are drawn again: 1 in 8,000."""
TRL = {
    "trl-varlen": Trl(),
    "trl-cudnn": Trl("cuDNN"),
    "trl-pip": Trl("sdpa", max_length=4096, accumulate=14),
    "trl-lora": Trl(lora=16),
    "trl-qwen2-3b": Trl(shape="qwen2.5-3b"),
    "trl-llama-3b": Trl(shape="llama-3.2-3b"),
    "trl-mistral-3b": Trl(shape="mistral-3b"),
    "trl-long-32k": Trl(max_length=32768, accumulate=1, checkpointing=True, length=32768),
}
RUNS: dict[str, Ours | Trl] = {**OURS, **TRL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, help="runs to make; all by default")
    parser.add_argument("--tiny", action="store_true", help="go through the motions with tiny models, on a CPU too")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps a run")
    parser.add_argument("--peer-steps", type=int, default=6, help="optimiser steps of a peer's run")
    parser.add_argument("--warm", type=int, default=3, help="first steps that are not counted; of a peer's half at most")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="train settings for our runs")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="another model's shape for all runs")
    parser.add_argument("--gpus", type=int, default=1, help="cards of our runs")
    parser.add_argument("--no-room", action="store_true", help="shard over several cards as if none had room for it all")
    parser.add_argument("--profile", action="store_true", help="where the time of one more step goes, by class of kernel")
    parser.add_argument("--work", type=Path, help="folder for the model and tokens, kept; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write the results here too")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.shape:
        RUNS.update({name: replace(run, shape=args.shape) for name, run in RUNS.items()})
    if args.measure:
        result = measure(args)
        if os.environ.get("RANK", "0") == "0":
            args.json.write_text(json.dumps(result))
        return
    work = args.work or Path(tempfile.mkdtemp(prefix="talaria-benchmark-"))
    try:
        results = run_all(args, work)
    finally:
        if not args.work:
            shutil.rmtree(work)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def run_all(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    results: dict[str, Any] = {"machine": machine()}
    print(json.dumps(results["machine"]), flush=True)
    for name in args.only or RUNS:
        prepare(args, work, RUNS[name])
        out = work / f"{name}.json"
        shutil.rmtree(work / "out", ignore_errors=True)
        ranks = (
            ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.gpus}"]
            if args.gpus > 1 and name in OURS
            else []
        )
        command = [sys.executable, *ranks, __file__, *sys.argv[1:], "--measure", name, "--work", str(work), "--json", str(out)]
        done = subprocess.run(command, check=False)
        results[name] = json.loads(out.read_text()) if done.returncode == 0 else {"failed": done.returncode}
        print(line(name, results), flush=True)
    print("\n" + "\n".join(line(name, results) for name in results if name != "machine"))
    return results


def prepare(args: argparse.Namespace, work: Path, run: Ours | Trl) -> None:
    """A run's model and tokens, made where they are not there yet; other shapes' models go, as they are large."""
    import torch

    sizes = SHAPES[run.shape] | (TINY if args.tiny else {})
    model, tokens = folders(work, run)
    if not model.exists():
        for other in SHAPES:
            shutil.rmtree(work / other, ignore_errors=True)
        make_model(model, sizes, "cuda" if torch.cuda.is_available() else "cpu")
        torch.cuda.empty_cache()
    if not tokens.exists():
        count = (4 if args.tiny or run.length else 128) * args.gpus * (args.steps + 3)
        make_tokens(tokens, count, sizes["vocab_size"], LONGEST, length=run.length)


def folders(work: Path, run: Ours | Trl) -> tuple[Path, Path]:
    """(model, tokens)."""
    return work / run.shape / "model", work / run.shape / (f"tokens-{run.length}" if run.length else "tokens")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    from talaria.train.distributed import sharding

    from benchmarks import train_runs

    run = RUNS[args.measure]
    (model, tokens), output = folders(args.work, run), args.work / "out"
    if isinstance(run, Trl):
        run = replace(run, max_length=512, accumulate=1) if args.tiny else run
        return train_runs.run_trl(model, tokens, output, run, args.peer_steps, min(args.warm, args.peer_steps // 2))
    chosen = dict(pair.split("=", 1) for pair in args.set)
    settings = {"global_batch": 4 if args.tiny else 128, **run.settings, **chosen}
    if args.no_room:
        sharding._FOR_STATE = 0.0
    return train_runs.run_ours(model, tokens, output, settings, args.steps, args.warm, args.profile)


def line(name: str, results: dict[str, Any]) -> str:
    result = results[name]
    if "failed" in result:
        return f"{name:16} failed with exit code {result['failed']}"
    text = f"{name:16} {result['tokens_per_second']:8,.0f} tokens/s  MFU {result['mfu']:.1%}  "
    text += f"memory {result['peak_memory'] / 1e9:.1f} GB (process {result['process_memory'] / 1e9:.1f})"
    if "watts" in result:
        text += f"  {result['clock_mhz']:.0f} MHz at {result['watts']:.0f} W"
    if "data_wait" in result:
        text += f"  data wait {result['data_wait']:.2%}  p99/median {result['p99_over_median']:.3f}"
        text += f"  compiled after step 10: {result['compiled_after_10']}  micro-batches {result['micro_batches']:.1f}"
        text += "".join(
            f"  {results[name]['tokens_per_second'] / results[peer]['tokens_per_second']:.2f}x {peer}"
            for peer in OURS[name].peers
            if "tokens_per_second" in results.get(peer, {})
        )
        text += f"\n             {result['kernels']}"
    for kind, milliseconds in result.get("profile", {}).items():
        text += f"\n             {milliseconds:9.2f} ms  {kind}"
    return text


def machine() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"}
    found["python"] = platform.python_version()
    for package in ("torch", "triton", "transformers", "flash-attn-4", "nvidia-cudnn-cu13", "trl", "liger-kernel"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        sys.exit(1)
