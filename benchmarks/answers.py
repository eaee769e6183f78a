"""Answers a second of the evaluate stage: decoding by one CUDA graph a token beside transformers' `generate`, on one GPU.

    python benchmarks/answers.py [--shape qwen3-4b] [--prompts 256] [--new 256]
    python benchmarks/answers.py --model FOLDER --tokens TOKENS

Random weights never end an answer, so each has its full length. Prompts are random tokens in lengths like OpenHermes-2.5's. What
is compared in fp32 must be equal; in bf16 the order of sums decides between near-equal logits, which random weights are full of.
A model that was trained (--model) answers the held-out prompts of --tokens. In bf16 `generate` is then compared with itself too,
in batches of half the size, and all with the answers in fp32: so much is equal where nothing but the order of sums differs.
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
from talaria.evaluation.greedy_answers import Answer, Prompt, answer_all, choose_prompts, open_for_answers
from talaria.tokenization.dataset import open_tokens
from transformers import AutoTokenizer

from benchmarks.train import machine
from benchmarks.train_data import SHAPES, lengths_like_openhermes, make_model

END = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen3-4b", choices=SHAPES)
    parser.add_argument("--model", type=Path, help="a model folder; one of random weights by default")
    parser.add_argument("--tokens", type=Path, help="a tokens folder for --model, whose held-out prompts are answered")
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
    prompts, end = held_out_prompts(args) if args.tokens else random_prompts(args)
    exact: list[Answer] = []
    for dtype in (getattr(torch, name) for name in args.dtypes):
        few = prompts if dtype == torch.bfloat16 or args.tokens else prompts[:16]
        answers = {}
        for way in ("generate", "graph", *(["halves"] if args.tokens and dtype == torch.bfloat16 else [])):
            hf = open_for_answers(args.model, device).to(dtype)
            answers[way], seconds = answer(hf, few, args, way, end)
            print(f"{dtype} {way:8} {len(few) / seconds:7.2f} answers/s  {seconds:6.1f} s", flush=True)
            del hf
            torch.cuda.empty_cache()
        exact = answers["generate"] if dtype == torch.float32 else exact
        pairs = {f"generate and {way}": (answers["generate"], answers[way]) for way in answers if way != "generate"}
        if exact and dtype != torch.float32 and args.tokens:
            pairs |= {f"generate in fp32 and {way}": (exact, answers[way]) for way in answers}
        for pair, (one, other) in pairs.items():
            print(f"{dtype} equal answers, {pair}: {sum(map(Answer.__eq__, one, other))} of {len(few)}", flush=True)


def random_prompts(args: argparse.Namespace) -> tuple[list[Prompt], int]:
    draw = np.random.default_rng(0)
    lengths = np.minimum(lengths_like_openhermes(args.prompts, 4000) * 2 // 5 + 1, 1000)
    every = (draw.integers(2, SHAPES[args.shape]["vocab_size"], n).astype(np.int32) for n in lengths)
    return [Prompt(row, ids, np.empty(0, np.int32)) for row, ids in enumerate(every)], END


def held_out_prompts(args: argparse.Namespace) -> tuple[list[Prompt], int]:
    tokens = open_tokens(args.tokens)["validation"]
    assert tokens is not None
    end = AutoTokenizer.from_pretrained(args.model).convert_tokens_to_ids("<|im_end|>")
    return choose_prompts(tokens, args.prompts, end), end


def answer(hf: Any, prompts: list[Prompt], args: argparse.Namespace, way: str, end: int) -> tuple[list[Answer], float]:
    how = {"end": end, "ends": [end], "pad": 0, "max_tokens": args.batch_tokens // (2 if way == "halves" else 1)}
    can = graph_decoding.can_decode
    if way != "graph":
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
