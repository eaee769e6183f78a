"""The evaluate stage: held-out loss and answers of the tuned model beside its base's, and the loss of every kept model.

`report.json`: heldout (conversations, supervised_tokens, digest; null without a held-out split), tuned and base (loss,
exact_match, stopped, of a mixture by_source; null where there is nothing to measure on), exports (step, loss), prompts, device,
dtype, seconds.
`samples.jsonl`: a line per prompt: row, prompt, reference, base, tuned, base_match, tuned_match, tuned_stopped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from talaria.common.errors import DataError
from talaria.config.evaluation_settings import Evaluate as Settings
from talaria.config.schema import Config
from talaria.runs.folder import MODEL, exported, step_of
from talaria.tokenization.dataset import VALIDATION, Tokens, open_tokens

if TYPE_CHECKING:
    import torch

    from talaria.evaluation.greedy_answers import Answer, Prompt
    from talaria.evaluation.heldout_loss import HeldOut

REPORT, SAMPLES = "report.json", "samples.jsonl"
_CACHED = 4
"""Tokens in a batch of answers for each one in a batch of losses: a cached token has keys and values, but no logits."""
NO_SPLIT = "No held-out conversations: set tokenize.validation_fraction above 0 (sources.NAME.held_out) to measure the model."


def run(config: Config, inputs: Mapping[str, Path], out_dir: Path) -> dict[str, Any]:
    """Run the stage `evaluate`. `inputs`: folders of train, tokenize, base."""
    exports = exported(inputs["train"])
    return measure(config.evaluate, inputs["train"] / MODEL, inputs["tokenize"], inputs["base"], exports, out_dir)


def evaluate(config: Config, *, model: Path, tokens: Path, base: Path | None, output: Path) -> dict[str, Any]:
    """Evaluate any model folder on any tokens folder; `output` appears whole or not at all."""
    from talaria.common.output_folder import replacing

    for folder in (model, base):
        if folder is not None and not (folder / "config.json").is_file():
            raise DataError(f"{folder}: not a model folder (no config.json).")
    with replacing(output, "evaluate") as work:
        facts = measure(config.evaluate, model, tokens, base, [], work.path)
        work.describe(facts)
    return facts


def measure(
    settings: Settings, model: Path, tokens: Path, base: Path | None, exports: Sequence[Path], out_dir: Path
) -> dict[str, Any]:
    """Write the report into `out_dir`; return its main numbers."""
    from talaria.evaluation.heldout_loss import best_device
    from talaria.tokenization.dataset import heldout_digest

    start = time.monotonic()
    device = best_device()
    split = open_tokens(tokens)[VALIDATION]
    exam = Exam.of(split, settings, model) if split else None
    tuned = exam.take(model, device) if exam else None
    before = exam.take(base, device) if exam and base else None
    known = {weights_of(model): tuned.found} if tuned else {}  # the last export is the final model under another name
    losses = {export: known.get(weights_of(export)) or exam.loss_of(export, device) for export in exports} if exam else {}
    report = {
        "heldout": exam.described(heldout_digest(tokens)) if exam else None,
        "tuned": tuned.summary if tuned else None,
        "base": before.summary if before else None,
        "exports": [{"step": step_of(export), "loss": found.loss, **_by_source(found)} for export, found in losses.items()],
        "prompts": len(exam.prompts) if exam else 0,
        "max_new_tokens": settings.max_new_tokens,
        "device": _device_name(device),
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
        "seconds": round(time.monotonic() - start, 2),
        "note": None if exam else NO_SPLIT,
    }
    (out_dir / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    lines = exam.samples(tuned, before) if exam and tuned else []
    (out_dir / SAMPLES).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return flat(report)


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
        "note": report["note"],
    }


def weights_of(folder: Path) -> frozenset[tuple[int, int]]:
    """Return (device, inode) of a folder's weight files: equal sets are hard links of the same files."""
    stats = [path.stat() for path in folder.glob("*.safetensors")]
    return frozenset((stat.st_dev, stat.st_ino) for stat in stats)


@dataclass(frozen=True)
class Result:
    found: HeldOut
    answers: list[Answer]
    texts: list[str]
    matches: list[bool]

    @property
    def summary(self) -> dict[str, Any]:
        return {
            "loss": self.found.loss,
            **_by_source(self.found),
            "exact_match": _share(self.matches),
            "stopped": _share([answer.stopped for answer in self.answers]),
        }


@dataclass(frozen=True)
class Exam:
    """The held-out conversations and the prompts chosen from them."""

    tokens: Tokens
    settings: Settings
    prompts: list[Prompt]
    ends: list[int]
    """Ids that end an answer, the chat template's first; the same for every model: a base is not held to its own habits."""
    pad: int
    decode: Callable[[Any], str]

    @classmethod
    def of(cls, tokens: Tokens, settings: Settings, model: Path) -> Exam:
        from transformers import AutoTokenizer

        from talaria.evaluation.greedy_answers import choose_prompts
        from talaria.tokenization.rendered.prompt import end_ids

        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        ends = end_ids(model)
        prompts = choose_prompts(tokens, settings.prompts, ends[0])
        return cls(tokens, settings, prompts, ends, ends[-1], lambda ids: str(tokenizer.decode(ids)))

    def take(self, folder: Path, device: torch.device) -> Result:
        from talaria.evaluation.greedy_answers import answer_all, open_for_answers

        found = self.loss_of(folder, device)
        hf = open_for_answers(folder, device)
        answers = answer_all(
            hf,
            self.prompts,
            end=self.ends[0],
            ends=self.ends,
            pad=self.pad,
            max_new_tokens=self.settings.max_new_tokens,
            max_tokens=_CACHED * self.settings.batch_tokens,
        )
        texts = [self.decode(answer.ids) for answer in answers]
        references = [self.decode(prompt.reference) for prompt in self.prompts]
        _free(hf)
        return Result(found, answers, texts, [text.strip() == ref.strip() for text, ref in zip(texts, references, strict=True)])

    def loss_of(self, folder: Path, device: torch.device) -> HeldOut:
        from talaria.evaluation.heldout_loss import heldout_loss, open_model

        model = open_model(folder, device)
        found = heldout_loss(model, self.tokens, self.settings.batch_tokens)
        _free(model)
        return found

    def described(self, digest: str | None) -> dict[str, Any]:
        supervised = int(self.tokens.supervised.sum())
        return {"conversations": len(self.tokens), "supervised_tokens": supervised, "digest": digest}

    def samples(self, tuned: Result, base: Result | None) -> list[dict[str, Any]]:
        return [
            {
                "row": prompt.row,
                "prompt": self.decode(prompt.ids),
                "reference": self.decode(prompt.reference),
                "base": base.texts[place] if base else None,
                "tuned": tuned.texts[place],
                "base_match": base.matches[place] if base else None,
                "tuned_match": tuned.matches[place],
                "tuned_stopped": tuned.answers[place].stopped,
            }
            for place, prompt in enumerate(self.prompts)
        ]


def _by_source(found: HeldOut) -> dict[str, Any]:
    """The losses of a mixture's sources; nothing for data of a single one."""
    return {"by_source": dict(found.by_source)} if found.by_source else {}


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _free(model: torch.nn.Module) -> None:
    """Free the memory of the weights before the next model is opened."""
    import torch

    model.to("meta")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
