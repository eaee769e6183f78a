"""The evaluate stage: held-out loss and answers of the tuned model beside its base's, and the loss of every kept model.

`report.json`: heldout (conversations, supervised_tokens, digest; null without a held-out split), tuned and base (loss, sources,
of a mixture by_source, exact_match, stopped; null where there is nothing to measure on), tasks (model -> task -> score, right,
failed, tags), contaminated (task -> items), exports (step, loss), prompts, device, dtype, seconds, settings.
`samples.jsonl`: a line per held-out prompt: row, prompt, reference, base, tuned, base_match, tuned_match, tuned_stopped.
`tasks.jsonl`: a line per prompt of a task; `task_files/`: the tasks' files.
`items/`: how tuned, base and every kept model did on each conversation and prompt (items.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.config.evaluation_settings import TASK
from talaria.config.evaluation_settings import Evaluate as Settings
from talaria.config.schema import Config
from talaria.data.messages_parquet import MESSAGES
from talaria.evaluation.exam import CACHED, Exam, Result, free, mixture_losses
from talaria.evaluation.items import FOLDER as ITEMS
from talaria.evaluation.items import Items
from talaria.evaluation.tasks.checks import copy_files, find_contamination, task_items, tasks_fingerprint
from talaria.evaluation.tasks.model_answers import TaskTests, metric_items, table
from talaria.evaluation.tasks.scoring import TaskResult
from talaria.runs.folder import MODEL, exported, step_of
from talaria.tokenization.dataset import TRAIN, VALIDATION, open_tokens

if TYPE_CHECKING:
    import torch

    from talaria.evaluation.heldout_loss import HeldOut


REPORT, SAMPLES, TASK_TABLE = "report.json", "samples.jsonl", "tasks.jsonl"
NO_SPLIT = "No held-out conversations: set tokenize.validation_fraction above 0 (sources.NAME.held_out) to measure the model."


def fingerprint(config: Config) -> Any:
    """What the tasks read from outside the store."""
    return tasks_fingerprint(config.evaluate)


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Run the stage `evaluate`. `inputs`: folders of train, tokenize, base, and convert, whose rows say their sources."""
    exports = exported(inputs["train"])
    data = inputs["convert"] / MESSAGES if "convert" in inputs else None
    return measure(config.evaluate, inputs["train"] / MODEL, inputs["tokenize"], inputs["base"], exports, out_dir, data)


def evaluate(
    config: Config, *, model: Path, tokens: Path, base: Path | None, output: Path, data: Path | None = None
) -> dict[str, Any]:
    """Evaluate any model folder on any tokens folder; `output` appears whole or not at all. `data`: the messages parquet."""
    from talaria.common.output_folder import replacing

    for folder in (model, base):
        if folder is not None and not (folder / "config.json").is_file():
            raise DataError(f"{folder}: not a model folder (no config.json).")
    with replacing(output, "evaluate") as work:
        facts = measure(config.evaluate, model, tokens, base, [], work.path, data)
        work.describe(facts)
    return facts


def measure(
    settings: Settings,
    model: Path,
    tokens: Path,
    base: Path | None,
    exports: Sequence[Path],
    out_dir: Path,
    data: Path | None = None,
) -> dict[str, Any]:
    """Write the report into `out_dir`; return its main numbers."""
    from talaria.evaluation.heldout_loss import best_device
    from talaria.tokenization.dataset import heldout_digest

    start = time.monotonic()
    tests = TaskTests.of(settings, model) if settings.tested else None
    device = best_device()
    splits = open_tokens(tokens)
    split, trained = splits[VALIDATION], splits[TRAIN]
    assert trained is not None  # only the held-out split may be missing
    looks = tests is not None and settings.contamination != "ignore"
    asked = [*task_items(settings), *(tests.questions() if tests and looks else ())]
    known_prompts = find_contamination(settings, asked, data, trained.rows)
    exam = Exam.of(split, settings, model, data) if split else None
    tuned = exam.take(model, device) if exam else None
    before = exam.take(base, device) if exam and base else None
    tested = _test(tests, {"tuned": model} | ({"base": base} if base else {}), device) if tests else {}
    known = {weights_of(model): tuned.heldout} if tuned else {}  # the last export is the final model under another name
    kept = {export: known.get(weights_of(export)) or exam.loss_of(export, device) for export in exports} if exam else {}
    report = {
        "heldout": exam.described(heldout_digest(tokens)) if exam else None,
        "tuned": tuned.summary if tuned else None,
        "base": before.summary if before else None,
        "tasks": {name: {one.task.name: one.summary() for one in results} for name, results in tested.items()},
        "contaminated": {name: [item.id for item in found] for name, found in known_prompts.items()},
        "exports": [
            {"step": step_of(export), "loss": heldout.loss, **mixture_losses(heldout)} for export, heldout in kept.items()
        ],
        "prompts": len(exam.prompts) if exam else 0,
        "max_new_tokens": settings.max_new_tokens,
        "device": _device_name(device),
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
        "seconds": round(time.monotonic() - start, 2),
        "note": None if exam else NO_SPLIT,
        "settings": settings.model_dump(mode="json"),
    }
    (out_dir / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    for name, taken in (("tuned", tuned), ("base", before)):
        _items_of(exam, taken, tested.get(name, ())).write(out_dir / ITEMS / f"{name}.parquet")
    if exam and tuned:
        _write_kept(exam, tests, tuned, kept, device, out_dir / ITEMS)
    if tests:
        copy_files(settings, out_dir)
        _write_lines(out_dir / TASK_TABLE, table(tested))
    lines = exam.samples(tuned, before) if exam and tuned else []
    _write_lines(out_dir / SAMPLES, lines)
    return flat(report)


def _write_kept(
    exam: Exam, tests: TaskTests | None, tuned: Result, kept: Mapping[Path, HeldOut], device: torch.device, folder: Path
) -> None:
    """Write the results per item of every kept model; the candidate, if it is one of these, answers too."""
    best = min(kept, key=lambda export: kept[export].loss, default=None)
    for export, heldout in kept.items():
        made = exam.items(heldout)
        if export == best and heldout.loss < tuned.heldout.loss:
            tested = _test(tests, {"best": export}, device)["best"] if tests else ()
            made = _items_of(exam, exam.take(export, device), tested)
        made.write(folder / f"{export.name}.parquet")


def _write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def _test(tests: TaskTests, folders: Mapping[str, Path], device: torch.device) -> dict[str, list[TaskResult]]:
    """Return the results of every task for each model."""
    from talaria.evaluation.greedy_answers import open_for_answers

    found = {}
    for name, folder in folders.items():
        hf = open_for_answers(folder, device)
        found[name] = tests.take(hf, CACHED * tests.settings.batch_tokens)
        free(hf)
    return found


def measure_items(settings: Settings, model: Path, tokens: Path) -> Items:
    """Measure one model by item, as `measure` does the tuned one."""
    from talaria.evaluation.heldout_loss import best_device

    device, split = best_device(), open_tokens(tokens)[VALIDATION]
    exam = Exam.of(split, settings, model) if split else None
    tested = _test(TaskTests.of(settings, model), {"it": model}, device)["it"] if settings.tested else ()
    return _items_of(exam, exam.take(model, device) if exam else None, tested)


def heldout_answers(settings: Settings, model: Path, tokens: Path) -> dict[int, str]:
    """Return row -> a model's answer to each held-out prompt, as `samples.jsonl` has them of the tuned one."""
    from talaria.evaluation.heldout_loss import best_device

    split = open_tokens(tokens)[VALIDATION]
    if split is None or not settings.prompts:
        return {}
    exam = Exam.of(split, settings, model)
    _, texts = exam.answers_of(model, best_device())
    return {prompt.row: text for prompt, text in zip(exam.prompts, texts, strict=True)}


def _items_of(exam: Exam | None, taken: Result | None, tested: Sequence[TaskResult]) -> Items:
    """Return everything that was measured of one model, by item."""
    found = exam.items(taken.heldout, taken.matches) if exam and taken else Items()
    for result in tested:
        found.add(f"{TASK}/{result.task.name}", metric_items(result))
    return found


def flat(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the report's numbers under their MLflow names; None for those that could not be measured."""
    tuned, base = report["tuned"] or {}, report["base"] or {}
    return {
        "heldout_loss": tuned.get("loss"),
        "base_heldout_loss": base.get("loss"),
        "exact_match": tuned.get("exact_match"),
        "base_exact_match": base.get("exact_match"),
        "stopped": tuned.get("stopped"),
        **{f"heldout_loss/{name}": loss for name, loss in tuned.get("by_source", {}).items()},
        **{f"base_heldout_loss/{name}": loss for name, loss in base.get("by_source", {}).items()},
        "heldout_conversations": (report["heldout"] or {}).get("conversations"),
        "prompts": report["prompts"],
        "tasks": _scores(report),
        "note": report["note"],
    }


def _scores(report: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Task -> score of base and tuned."""
    tasks = report["tasks"]
    base = tasks.get("base", {})
    return {
        name: {"base": base[name]["score"] if name in base else None, "tuned": one["score"]}
        for name, one in tasks.get("tuned", {}).items()
    }


def weights_of(folder: Path) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of a folder's weight files: equal sets are hard links of the same files."""
    stats = [path.stat() for path in folder.glob("*.safetensors")]
    return frozenset((stat.st_dev, stat.st_ino) for stat in stats)


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
