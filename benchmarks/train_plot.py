"""Draw docs/images/performance-*.svg from benchmarks/results/*.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"peer": "#9aa0a6", "bf16": "#1a73e8", "mixed": "#188038"}
LABELS = {"peer": "TRL 1.16", "bf16": "this trainer, bf16", "mixed": "this trainer, fp32 masters (default)"}


def speed(results: Path, target: Path) -> None:
    found = json.loads(results.read_text())
    stages = found["stages"]
    figure, axes = plt.subplots(figsize=(9, 5.2))
    for place, stage in enumerate(reversed(stages)):
        axes.barh(place, stage["tokens_per_second"], color=COLOURS[stage["kind"]])
        axes.text(
            stage["tokens_per_second"] + 150,
            place,
            f"{stage['tokens_per_second']:,}  {stage['mfu']:.1%}",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(stages)), [stage["what"] for stage in reversed(stages)], fontsize=8)
    axes.set_xlabel("tokens a second and MFU, Qwen3-4B's shape")
    axes.set_title(f"{found['device']}, {found['date']}", fontsize=10)
    axes.set_xlim(0, 46_000)
    axes.legend(
        [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()], LABELS.values(), fontsize=8, loc="upper right"
    )
    finish(figure, target)


def numerics(results: Path, target: Path) -> None:
    found = json.loads(results.read_text())
    by_rate = found["losses_by_learning_rate"]
    figure, panels = plt.subplots(1, len(by_rate), figsize=(9, 3.6), sharey=True)
    for axes, (rate, curves) in zip(panels, by_rate.items(), strict=True):
        for name, losses in curves.items():
            axes.plot(losses, label=name, linewidth=1.2, linestyle="--" if "nearest" in name else "-")
        axes.set_title(f"learning rate {float(rate):g}", fontsize=10)
        axes.set_xlabel("optimiser step")
    panels[0].set_ylabel("loss")
    panels[0].legend(fontsize=8)
    finish(figure, target)


def precision(results: Path, target: Path) -> None:
    losses = json.loads(results.read_text())["losses"]
    figure, (curves, apart) = plt.subplots(1, 2, figsize=(9, 3.6))
    for name, of_mode in losses.items():
        (line,) = curves.plot(of_mode, label=name, linewidth=1.2)
        if name != "fp32":
            differences = [100 * (a - b) / b for a, b in zip(of_mode, losses["fp32"], strict=True)]
            apart.plot(differences, color=line.get_color(), label=name, linewidth=1.2)
    curves.set_ylabel("loss")
    apart.set_ylabel("difference to fp32, %")
    for axes in (curves, apart):
        axes.set_xlabel("optimiser step")
        axes.legend(fontsize=8)
    finish(figure, target)


def real_modes(results: Path, target: Path) -> None:
    """Losses of a really trained model in every mode beside TRL: each step's difference to the plain loop's, and held out."""
    runs = json.loads(results.read_text())["runs"]
    reference = runs["plain loop"]
    figure, (curves, apart, held_out) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1, 1.2, 1))
    for name, run in runs.items():
        style = {"linewidth": 1.2, "linestyle": "--" if name.startswith("TRL") else "-"}
        (line,) = curves.plot(smooth(run["losses"]), label=name, **style)
        if name != "plain loop" and "LoRA" not in name:
            differences = [100 * (a - b) / b for a, b in zip(run["losses"], reference["losses"], strict=True)]
            apart.plot(differences, color=line.get_color(), **style)
        held_out.scatter([run["held_out"]], [name], marker="D" if name.startswith("TRL") else "o", color=line.get_color())
        held_out.text(run["held_out"], name, f"  {run['held_out']:.4f}", va="center", fontsize=7)
    held_out.axvspan(0.995 * reference["held_out"], 1.005 * reference["held_out"], color="#9aa0a6", alpha=0.25)
    held_out.invert_yaxis()
    held_out.margins(x=0.3)
    held_out.tick_params(axis="y", labelsize=8)
    held_out.set_xlabel("held-out loss; grey: 0.5% around the plain loop's")
    curves.set_ylabel("loss, mean of 10 steps")
    apart.set_ylabel("difference to the plain loop, %")
    for axes in (curves, apart):
        axes.set_xlabel("optimiser step")
    curves.legend(fontsize=7)
    finish(figure, target)


def smooth(values: Sequence[float], width: int = 10) -> list[float]:
    """Means over the last `width` values, or as many as there are."""
    return [sum(values[max(0, end - width) : end]) / min(width, end) for end in range(1, len(values) + 1)]


def scaling(simulated: Path, measured: Path, target: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 3.6))
    tables = json.loads(simulated.read_text())["tables"].items()
    for title, points in ((title, points) for title, points in tables if points[0]["gpus"] == 1):
        label = f"simulated: {title}"
        axes.plot([p["gpus"] for p in points], [100 * p["efficiency"] for p in points], marker="o", markersize=4, label=label)
    shown = [run for run in json.loads(measured.read_text())["runs"] if run["sharding"] == "auto" and run["gpus"] > 1]
    gpus, efficiency = zip(*((run["gpus"], 100 * run["per_gpu_of_one"]) for run in shown), strict=True)
    axes.scatter(gpus, efficiency, color="black", marker="x", zorder=3, label="measured, train.sharding: auto")
    axes.set_xscale("log", base=2)
    axes.set_xticks([2**k for k in range(11)], [str(2**k) for k in range(11)])
    axes.set_ylim(0, 105)
    axes.set_xlabel("GPUs")
    axes.set_ylabel("tokens a second and GPU,\n% of one GPU's")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    finish(figure, target)


def finish(figure: plt.Figure, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    matplotlib.rcParams["svg.hashsalt"] = "talaria"
    speed(ROOT / "benchmarks/results/train-speed.json", ROOT / "docs/images/performance-speed.svg")
    precision(ROOT / "benchmarks/results/train-precision.json", ROOT / "docs/images/performance-precision.svg")
    scaling(
        ROOT / "benchmarks/results/scaling.json",
        ROOT / "benchmarks/results/train-gpus.json",
        ROOT / "docs/images/performance-scaling.svg",
    )
    numerics(ROOT / "benchmarks/results/train-numerics.json", ROOT / "docs/images/performance-numerics.svg")
    real_modes(ROOT / "benchmarks/results/real-modes.json", ROOT / "docs/images/performance-real-modes.svg")
