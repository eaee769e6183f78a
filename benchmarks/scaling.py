"""What the trainer would do on 1 to 1,024 GPUs: simulated from one GPU's measured speed, the plan's imbalance and stated links.

    python benchmarks/scaling.py --tokens-per-second 20000 [--json FILE]

Nothing here was measured on several GPUs. What goes in:

- compute: a micro-batch takes FLOPs / (MFU x peak), the FLOPs of docs/training.md (6 x matmul parameters x tokens + causal
  attention inside conversations), the MFU from the one-GPU speed given on the command line;
- imbalance: the trainer's own Plan over OpenHermes-like lengths; in each round every rank waits for the costliest micro-batch;
- sharding: HSDP, parameters sharded over the 8 GPUs of a node and replicated over nodes. In each round the bf16 parameters are
  gathered twice (forward, backward) inside the node, and gradients are reduced in fp32 in the last round: scattered inside the
  node, then the shard is all-reduced between nodes. Ring collectives: (n - 1) / n of the bytes over the link;
- overlap: gathers and scatters run beside the compute of the neighbouring layer, so what shows is the excess over compute and
  one layer's transfer; the all-reduce between nodes runs beside the last round's backward pass;
- links: NVLink 4 at 450 GB/s a direction and one 400 Gb/s InfiniBand port a GPU (50 GB/s), both at 80% of the datasheet.

Left out: stragglers, failures, switches under load, the time that checkpoints take.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.train.plan import Plan

PARAMETERS = 4.022e9  # Qwen3-4B, matrices, the tied embedding once
LAYERS, HEADS, HEAD_DIM = 36, 32, 128
PEAK = 989e12
NODE = 8
NVLINK = 0.8 * 450e9
NETWORK = 0.8 * 50e9
LATENCY = 20e-6  # a collective's start


@dataclass(frozen=True)
class Point:
    gpus: int
    global_batch: int
    tokens_per_second: float
    per_gpu: float
    efficiency: float
    balance: float
    exposed_communication: float
    """Share of the step."""


def lengths_like_openhermes(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Lognormal with the data set's median (330) and mean (about 420), cut at 8,000 tokens."""
    draws = np.random.default_rng(seed).lognormal(np.log(330), 0.69, count)
    return np.clip(draws, 16, 8000).astype(np.int64)


def flops(lengths: npt.NDArray[np.int64]) -> float:
    """Forward and backward of some conversations: 6 x parameters x tokens, and causal attention (half the square)."""
    attention = 6 * LAYERS * HEADS * HEAD_DIM * np.square(lengths.astype(float)).sum()
    return 6 * PARAMETERS * float(lengths.sum()) + attention


def ring(volume: float, ranks: int, bandwidth: float) -> float:
    """Seconds of an all-gather or reduce-scatter of `volume` bytes over `ranks`."""
    return 0.0 if ranks == 1 else LATENCY + volume * (ranks - 1) / ranks / bandwidth


def simulate(gpus: int, global_batch: int, mfu: float, max_tokens: int, steps: int = 4) -> Point:
    lengths = lengths_like_openhermes(max(40_000, 2 * global_batch))
    quadratic = HEADS * HEAD_DIM * LAYERS / PARAMETERS
    plan = Plan(lengths, lengths, global_batch=global_batch, max_tokens=max_tokens, ranks=gpus, seed=0, quadratic=quadratic)
    node, nodes = min(gpus, NODE), max(1, gpus // NODE)
    gather = ring(2 * PARAMETERS, node, NVLINK)
    scatter = ring(4 * PARAMETERS, node, NVLINK)
    between = 2 * ring(4 * PARAMETERS / node, nodes, NETWORK)
    seconds = shown = tokens = 0.0
    balance = []
    for index in range(min(steps, len(plan))):
        step = plan.step(index)
        rounds = len(step.micro_batches[0])
        for k in range(rounds):
            compute = max(flops(lengths[rank[k]]) for rank in step.micro_batches) / (mfu * PEAK)
            last = k == rounds - 1
            forward, backward = compute / 3, compute * 2 / 3
            hidden = max(gather - forward, gather / LAYERS if node > 1 else 0.0)
            back = gather + (scatter if last else 0.0)
            hidden += max(back - backward, back / LAYERS if node > 1 else 0.0)
            hidden += max(between - backward, between / LAYERS if nodes > 1 else 0.0) if last else 0.0
            seconds += compute + hidden
            shown += hidden
        tokens += step.tokens
        balance.append(step.balance)
    speed = tokens / seconds
    alone = mfu * PEAK * lengths.sum() / flops(lengths)
    return Point(gpus, global_batch, speed, speed / gpus, speed / gpus / alone, float(np.mean(balance)), shown / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-second", type=float, required=True, help="measured on one GPU")
    parser.add_argument("--max-tokens", type=int, default=9216, help="train.max_tokens_per_device")
    parser.add_argument("--most", type=int, default=1024, help="largest number of GPUs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lengths = lengths_like_openhermes(100_000)
    mfu = options.tokens_per_second * flops(lengths) / lengths.sum() / PEAK
    counts = [2**k for k in range(11) if 2**k <= options.most]
    tables = {
        "fixed tokens per GPU (128 conversations each)": [simulate(n, 128 * n, mfu, options.max_tokens) for n in counts],
        "fixed global batch of 128": [simulate(n, 128, mfu, options.max_tokens) for n in counts if n <= 128],
    }
    print(f"One GPU: {options.tokens_per_second:,.0f} tokens/s = {mfu:.1%} of {PEAK / 1e12:.0f} TFLOP/s. Simulated:")
    for title, points in tables.items():
        print(
            f"\n{title}\n{'GPUs':>6} {'batch':>8} {'tokens/s':>12} {'per GPU':>9} {'efficient':>10} {'balance':>8} {'exposed':>8}"
        )
        for p in points:
            print(
                f"{p.gpus:6} {p.global_batch:8} {p.tokens_per_second:12,.0f} {p.per_gpu:9,.0f} {p.efficiency:10.1%} "
                f"{p.balance:8.1%} {p.exposed_communication:8.1%}"
            )
    if options.json:
        options.json.write_text(json.dumps({title: [vars(p) for p in points] for title, points in tables.items()}))


if __name__ == "__main__":
    main()
