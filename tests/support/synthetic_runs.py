"""Training folders as the trainer leaves them, with curves that look like training and hold a known spike."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START = 1_790_000_000.0


def rows(
    first: int,
    last: int,
    *,
    total: int,
    seed: int = 0,
    spikes: dict[int, float] | None = None,
    start: float = START,
    pace: float = 1.3,
) -> Iterator[dict[str, Any]]:
    """Metric rows of steps `first` to `last`; each depends on its step and seed alone, so a resumed run repeats them."""
    for step in range(first, last + 1):
        noise = random.Random(seed * 1_000_003 + step)
        done = step / total
        warm = min(1.0, step / max(1, total // 10))
        loss = 0.92 + 1.9 * math.exp(-9 * done) + noise.gauss(0, 0.03) - 0.04 * math.floor(3 * done)
        tokens = 46_000 + noise.randint(-2_500, 2_500)
        seconds = pace * (1 + abs(noise.gauss(0, 0.03)))
        yield {
            "step": step,
            "epoch": round(3 * done, 4),
            "loss": (spikes or {}).get(step, loss),
            "supervised_tokens": int(tokens * 0.43),
            "tokens": tokens,
            "lr": 1e-6 + 9e-6 * warm * 0.5 * (1 + math.cos(math.pi * done)),
            "grad_norm": 0.6 + 2.2 * math.exp(-12 * done) + abs(noise.gauss(0, 0.08)),
            "seconds": seconds,
            "data_wait_seconds": abs(noise.gauss(0.0012, 0.0006)),
            "tokens_per_second": tokens / seconds,
            "mfu": 0.47 / (1 + abs(noise.gauss(0, 0.03))),
            "memory_bytes": 68_400_000_000 + noise.randint(0, 900_000_000),
            "time": start + step * pace,
        }


def lines(objects: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in objects)


def settings(name: str, **train: Any) -> dict[str, Any]:
    defaults = {"epochs": 3, "lr": 1e-5, "global_batch": 128, "seed": 42, "precision": "mixed", "hang_timeout": 600.0}
    return {"name": name, "train": {**defaults, **train}, "tokenize": {"max_tokens": 9216}}


def training(
    folder: Path,
    *,
    name: str = "qwen3-4b-base",
    steps: int = 200,
    total: int = 400,
    state: str = "running",
    seed: int = 0,
    spikes: dict[int, float] | None = None,
    start: float = START,
    pace: float = 1.3,
    save_every: int = 50,
    eval_every: int = 50,
    restart_at: int | None = None,
    reason: str | None = None,
    mlflow_run_id: str | None = None,
    world_size: int = 8,
    **train: Any,
) -> Path:
    """Write a whole training folder."""
    folder.mkdir(parents=True, exist_ok=True)
    curve = list(rows(1, steps, total=total, seed=seed, spikes=spikes, start=start, pace=pace))
    (folder / "metrics.jsonl").write_text(lines(curve))
    (folder / "evals.jsonl").write_text(
        lines(
            {
                "step": row["step"],
                "epoch": row["epoch"],
                "loss": row["loss"] + 0.03,
                "supervised_tokens": 90_000,
                "seconds": 4.2,
                "time": row["time"],
            }
            for row in curve
            if row["step"] % eval_every == 0
        )
    )
    happened = [{"time": start, "step": 0, "kind": "start", "message": f"training on {world_size} ranks"}]
    happened += [
        {"time": start + step * pace, "step": step, "kind": "checkpoint", "message": f"saved checkpoints/step-{step:08d}"}
        for step in range(save_every, steps + 1, save_every)
    ]
    if restart_at is not None:
        when = start + restart_at * pace
        happened += [
            {"time": when, "step": restart_at, "kind": "preempted", "message": "SIGTERM: saved and stopped"},
            {"time": when + 41, "step": restart_at, "kind": "resume", "message": f"continuing from step {restart_at}"},
        ]
    if state in ("done", "failed"):
        happened.append({"time": start + steps * pace, "step": steps, "kind": state, "message": reason or "training finished"})
    (folder / "events.jsonl").write_text(lines(sorted(happened, key=lambda event: (event["time"], event["step"]))))
    (folder / "config.json").write_text(json.dumps(settings(name, **train)))
    status = {
        "state": state,
        "step": steps,
        "total_steps": total,
        "reason": reason,
        "kind": None,
        "time": start + steps * pace,
        "world_size": world_size,
    }
    (folder / "status.json").write_text(json.dumps(status))
    if mlflow_run_id:
        url = f"http://mlflow.example/#/experiments/1/runs/{mlflow_run_id}"
        (folder / "mlflow.json").write_text(json.dumps({"run_id": mlflow_run_id, "url": url}))
    system = {"step": 9, "time": start + steps * pace, "cost/seconds": steps * pace}
    system |= {"cost/gpu_hours": world_size * steps * pace / 3600, "cost/energy_kwh": 0.6 * world_size * steps * pace / 3600}
    (folder / "system.jsonl").write_text(lines([system]))
    for file in folder.iterdir():
        os.utime(file, (happened[-1]["time"], max(curve[-1]["time"], happened[-1]["time"])))
    return folder


def key(number: int) -> str:
    """A store key that begins with a readable number."""
    return f"{number:08x}" + "c0ffee" * 4


def running(store: Path, number: int, **facts: Any) -> Path:
    return training(store / ".work" / f"train-{key(number)}", **facts)


def finished(store: Path, number: int, **facts: Any) -> Path:
    return training(store / "train" / key(number), state="done", **facts)
