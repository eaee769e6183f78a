"""Answers a second of the evaluate stage: decoding by one CUDA graph a token beside transformers' `generate`, on one GPU.

    python benchmarks/answers.py [--shape qwen3-4b] [--prompts 256] [--new 256]

Random weights never end an answer, so each has its full length. Prompts are random tokens in lengths like OpenHermes-2.5's. What
is compared in fp32 must be equal; in bf16 the order of sums decides between near-equal logits, which random weights are full of.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from talaria.evaluation import graph_decoding
from talaria.evaluation.greedy_answers import Answer, Prompt, answer_all, open_for_answers

from benchmarks.train import machine
from benchmarks.train_data import SHAPES, lengths_like_openhermes, make_model

END = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--model", type=Path, help="a model folder; one of random weights by default")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new", type=int, default=256, help="most tokens of an answer")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-tokens", type=int, default=4 * 9216)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as work:
        if args.model is None:
            args.model = Path(work) / "model"
            make_model(args.model, SHAPES[args.shape], device.type)
        compare(args, device)


def compare(args: argparse.Namespace, device: torch.device) -> None:
    vocabulary = SHAPES[args.shape]["vocab_size"]
    draw = np.random.default_rng(0)
    lengths = np.minimum(lengths_like_openhermes(args.prompts, 4000) * 2 // 5 + 1, 1000)
    prompts = [
        Prompt(row, draw.integers(2, vocabulary, n).astype(np.int32), np.empty(0, np.int32)) for row, n in enumerate(lengths)
    ]
    for dtype in (getattr(torch, name) for name in args.dtypes):
        few = prompts if dtype == torch.bfloat16 else prompts[:16]
        answers = {}
        for way in ("generate", "graph"):
            hf = open_for_answers(args.model, device).to(dtype)
            answers[way], seconds = answer(hf, few, args, way)
            print(f"{dtype} {way:8} {len(few) / seconds:7.2f} answers/s  {seconds:6.1f} s", flush=True)
            del hf
            torch.cuda.empty_cache()
        same = sum(a == b for a, b in zip(answers["generate"], answers["graph"], strict=True))
        print(f"{dtype} equal answers: {same} of {len(few)}", flush=True)


def answer(hf: Any, prompts: list[Prompt], args: argparse.Namespace, way: str) -> tuple[list[Answer], float]:
    how = {"end": END, "ends": [END], "pad": 0, "max_tokens": args.batch_tokens}
    can = graph_decoding.can_decode
    if way == "generate":
        graph_decoding.can_decode = lambda hf: False
    try:
        answer_all(hf, prompts[:2], max_new_tokens=8, **how)
        start = time.monotonic()
        answers = answer_all(hf, prompts, max_new_tokens=args.new, **how)
        return answers, time.monotonic() - start
    finally:
        graph_decoding.can_decode = can


if __name__ == "__main__":
    main()
