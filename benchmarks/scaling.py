"""What the trainer would do on 1 to 1,024 GPUs: simulated from one GPU's measured speed, the plan's imbalance and stated links.

    python benchmarks/scaling.py --tokens-per-second 22177 [--json FILE]

Two GPUs were measured, and docs/performance.md has them beside this. What goes in:

- compute: a micro-batch takes FLOPs / (MFU x peak), the FLOPs of docs/training.md (6 x matmul parameters x tokens + causal
  attention inside conversations), the MFU from the one-GPU speed given on the command line, without its optimiser;
- imbalance: the trainer's own Plan over OpenHermes-like lengths; in each round every rank waits for the costliest micro-batch;
- layout: every GPU holds the whole model and a share of the optimiser's state, as train.sharding: auto has it. Gradients are
  reduce-scattered in fp32 and weights gathered in bf16, once a step: over the 8 GPUs of a node, and each GPU's part between
  nodes, in rings: (n - 1) / n of the bytes a link;
- overlap: the layers' gradients travel beside the step's last backward pass and the weights beside the update, so what shows is
  the excess and the last layer's transfer; the embedding's gradient is complete only after it, and all of its transfer shows;
- the update, which is shared, and a step's fixed cost: both as measured on two H100s, where steps of 64 and of 32 conversations
  took 28 ms more than tokens and update account for (4 of them by the links above);
- links: NVLink 4 at 450 GB/s a direction and one 400 Gb/s InfiniBand port a GPU (50 GB/s), both at 80% of the datasheet.

Left out: stragglers, failures, switches under load, the time that checkpoints take; and that micro-batches are larger, and 3%
faster, where the optimiser's state is shared.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from talaria.train.batching.plan import Plan
from talaria.train.telemetry.flops import FlopCount

from benchmarks.train_data import LONGEST, lengths_like_openhermes

PARAMETERS = 4.022e9  # Qwen3-4B, matrices, the tied embedding once
EMBEDDING = 151_936 * 2_560
LAYERS, HEADS, HEAD_DIM = 36, 32, 128
FLOPS = FlopCount(per_token=6 * PARAMETERS, attention_width=LAYERS * HEADS * HEAD_DIM)
PEAK = 989e12
NODE = 8
NVLINK = 0.8 * 450e9
NETWORK = 0.8 * 50e9
LATENCY = 20e-6  # a collective's start
UPDATE = 17.2e-3 / 1.8e9  # seconds a parameter
FIXED = 24e-3  # seconds a step of several GPUs


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


def travel(volume: float, gpus: int) -> float:
    """Seconds to reduce-scatter or gather `volume` bytes over all GPUs: inside nodes, and each GPU's part between them."""
    node, nodes = min(gpus, NODE), max(1, gpus // NODE)
    return ring(volume, node, NVLINK) + ring(volume / node, nodes, NETWORK)


def ring(volume: float, ranks: int, bandwidth: float) -> float:
    return 0.0 if ranks == 1 else LATENCY + volume * (ranks - 1) / ranks / bandwidth


def simulate(gpus: int, global_batch: int, mfu: float, packed: int, alone: float) -> Point:
    """`alone`: one GPU's tokens per second."""
    steps = max(4, 64 * 128 // global_batch)
    lengths = lengths_like_openhermes(max(40_000, steps * global_batch), LONGEST)
    plan = Plan(
        lengths,
        lengths,
        global_batch=global_batch,
        max_tokens=LONGEST,
        packed_tokens=packed,
        ranks=gpus,
        seed=0,
        quadratic=FLOPS.quadratic,
    )
    layers, embedding = (travel(4 * count, gpus) for count in (PARAMETERS - EMBEDDING, EMBEDDING))
    update = UPDATE * PARAMETERS / gpus
    late_weights = max(0.0, travel(2 * PARAMETERS, gpus) - update)
    seconds = shown = tokens = 0.0
    balance = []
    for index in range(steps):
        step = plan.step(index)
        rounds = [
            max(FLOPS.of(lengths[batch]) for batch in batches) / (mfu * PEAK) for batches in zip(*step.micro_batches, strict=True)
        ]
        hidden_by = rounds[-1] * 2 / 3
        exposed = max(layers - hidden_by, layers / LAYERS) + embedding + late_weights
        seconds += sum(rounds) + exposed + update + (FIXED if gpus > 1 else 0.0)
        shown += exposed
        tokens += step.tokens
        balance.append(step.balance)
    speed = tokens / seconds
    return Point(gpus, global_batch, speed, speed / gpus, speed / gpus / alone, float(np.mean(balance)), shown / seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens-per-second", type=float, required=True, help="measured on one GPU")
    parser.add_argument("--packed", type=int, default=3719, help="tokens of a micro-batch, as the first line of a training says")
    parser.add_argument("--most", type=int, default=1024, help="largest number of GPUs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    lengths = lengths_like_openhermes(100_000, LONGEST)
    seconds = 128 * lengths.mean() / options.tokens_per_second  # of a step of 128 conversations
    mfu = 128 * FLOPS.of(lengths) / len(lengths) / (seconds - UPDATE * PARAMETERS) / PEAK
    how = mfu, options.packed, options.tokens_per_second
    counts = [2**k for k in range(11) if 2**k <= options.most]
    tables = {
        "fixed tokens per GPU (128 conversations each)": [simulate(n, 128 * n, *how) for n in counts],
        "two GPUs as measured: 128, 32 and 16 conversations each": [simulate(2, batch, *how) for batch in (256, 64, 32)],
        "fixed global batch of 128": [simulate(n, 128, *how) for n in counts if n <= 128],
    }
    print(f"One GPU: {options.tokens_per_second:,.0f} tokens/s, {mfu:.1%} of {PEAK / 1e12:.0f} TFLOP/s in compute. Simulated:")
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
        made_by = f"python benchmarks/scaling.py --tokens-per-second {options.tokens_per_second:.0f}, simulated"
        options.json.write_text(
            json.dumps(
                {"from": made_by, "tables": {title: [vars(p) for p in points] for title, points in tables.items()}}, indent=1
            )
        )


if __name__ == "__main__":
    main()
