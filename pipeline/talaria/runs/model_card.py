"""The model card: what a model came from, how it was trained, how good it is and what it cost. Pure text out of facts.

Training writes one without the evaluation into each model folder that it exports; registration replaces it by a whole one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from talaria.config import load as settings
from talaria.config.schema import Config

LIMIT = 5000
"""MLflow's longest description; a database other than SQLite refuses more."""
_BARS = "▁▂▃▄▅▆▇█"
_CURVE_POINTS = 8
_ORIGIN = (
    "talaria.train_key",
    "talaria.data.digest",
    "talaria.base.revision",
    "talaria.git_commit",
    "talaria.dag_id",
    "talaria.run_id",
)


@dataclass(frozen=True)
class Curve:
    """Training loss by step, and the held-out losses measured on the way."""

    steps: Sequence[int] = ()
    losses: Sequence[float] = ()
    heldout: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Facts:
    """What the card of one version is made from."""

    config: Config
    step: int
    total_steps: int
    role: str
    loss: float | None
    """Held-out loss of this version."""
    report: Mapping[str, Any]
    """The evaluate stage's."""
    tags: Mapping[str, str]
    """The version's lineage."""
    data: Mapping[str, Any]
    """The facts of convert and tokenize."""
    curve: Curve
    cost: Mapping[str, float]
    ranks: int | None
    by_source: Mapping[str, float] = field(default_factory=dict)
    """Held-out loss of this version on each source of a mixture."""
    champion: tuple[int, float] | None = None
    """Version of the champion and its held-out loss on the same conversations, when this version was made."""
    date: str = ""
    """Day on which training ended."""

    @classmethod
    def of_export(cls, config: Config, step: int) -> Facts:
        """Return what is known of a model when training writes it."""
        tags = {"talaria.base": config.base.origin, "talaria.data.name": config.data_origin}
        return cls(config, step, step, "kept", None, {}, tags, {}, Curve(), {}, None)


def readme(facts: Facts) -> str:
    """The README.md of the model folder: front matter that the hub reads, the card, and every setting."""
    config = facts.config
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["talaria", "sft"]}
    if config.base.source == "hub":
        front["base_model"] = config.base.repo
    if repos := [download.repo for download in config.downloads if download.source == "hub"]:
        front["datasets"] = list(dict.fromkeys(repos))
    whole = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n{card(facts)}\n## Every setting\n\n```yaml\n{whole}```\n"


def card(facts: Facts) -> str:
    """The description of the version, within LIMIT characters."""
    first = [summary(facts), _head(facts), _quality(facts)]
    sections = [*first, _data(facts), _curve(facts.curve), _cost(facts), _settings(facts), _origin(facts)]
    text = "\n\n".join(section for section in sections if section) + "\n"
    return text if len(text) <= LIMIT else text[: LIMIT - 2].rpartition("\n")[0] + "\n…"


def summary(facts: Facts) -> str:
    """Return the line that lists show of a description: how good it is beside what there was, on which data, from when."""
    tuned, base = facts.report.get("tuned") or {}, facts.report.get("base") or {}
    parts = []
    if facts.loss is not None:
        rivals = [f"base {_number(base.get('loss'))}"] if base.get("loss") is not None else []
        rivals += [f"champion {_number(facts.champion[1])}"] if facts.champion else []
        parts.append(f"Held-out loss {_number(facts.loss)}" + (f" ({', '.join(rivals)})" if rivals else ""))
    if facts.role == "final" and tuned.get("exact_match") is not None:
        parts.append(f"exact match {_percent(tuned['exact_match'])} (base {_percent(base.get('exact_match'))})")
    parts.append(data_label(facts.tags))
    return ", ".join([*parts, facts.date] if facts.date else parts) + "."


def data_label(tags: Mapping[str, str]) -> str:
    """Return the data's name with the beginning of its commit; a mixture has a commit for each source, so only names."""
    revision = tags.get("talaria.data.revision") if tags.get("talaria.data.source") != "mixture" else None
    return tags.get("talaria.data.name", "?") + (f"@{revision[:8]}" if revision else "")


def _head(facts: Facts) -> str:
    base, data = facts.tags.get("talaria.base", "?"), facts.tags.get("talaria.data.name", "?")
    at = "" if facts.step == facts.total_steps else f" (kept at step {facts.step} of {facts.total_steps})"
    how = "LoRA adapters, merged" if facts.config.train.lora.rank else "all parameters"
    return f"# {facts.config.name}\n\n{base}, fine-tuned ({how}) on {data}{at}. {_prompts(facts.config.tokenize.template)}"


def _prompts(template: str) -> str:
    """How a prompt has to look, as tokenize.template says."""
    if template == "chatml":
        return "Prompts are ChatML; answers end with `<|im_end|>`."
    whose = "the base tokenizer's own" if template == "own" else f"trained from {template}"
    return f"Prompts are made by the chat template saved beside the weights, {whose}."


def _quality(facts: Facts) -> str:
    heldout, tuned, base = facts.report.get("heldout"), facts.report.get("tuned") or {}, facts.report.get("base") or {}
    if not heldout:
        return f"## Quality\n\n{facts.report.get('note') or 'Not evaluated.'}"
    rows = [("held-out loss (token mean)", _number(base.get("loss")), _number(facts.loss))]
    before = base.get("by_source", {})
    rows += [(f"held-out loss, {name}", _number(before.get(name)), _number(loss)) for name, loss in facts.by_source.items()]
    if facts.role == "final":
        count = facts.report.get("prompts", 0)
        rows += [
            (f"exact match, {count} prompts", _percent(base.get("exact_match")), _percent(tuned.get("exact_match"))),
            ("stops by itself", _percent(base.get("stopped")), _percent(tuned.get("stopped"))),
        ]
    base_tasks = facts.report.get("tasks", {}).get("base", {})
    if facts.role == "final":
        for name, one in facts.report.get("tasks", {}).get("tuned", {}).items():
            rows.append((f"task {name}", _number(base_tasks.get(name, {}).get("score")), _number(one["score"])))
    on = f"Held out: {heldout['conversations']} conversations, {heldout['supervised_tokens']} supervised tokens."
    return f"## Quality\n\n{_table(('', 'base', 'this version'), rows)}\n\n{on} Measured on {facts.report.get('device')}."


def _data(facts: Facts) -> str:
    convert, tokens = facts.data.get("convert") or {}, facts.data.get("tokenize") or {}
    lines = []
    if revision := facts.tags.get("talaria.data.revision"):
        lines.append(f"- revision `{revision}`")
    counted = [name for name in ("conversations", "tokens", "supervised_tokens") if name in tokens]
    lines += [f"- {name.replace('_', ' ')}: {_counts(tokens[name])}" for name in counted]
    for name, counts in (convert.get("sources") or {}).items():
        rows = f"{counts['train']:,} rows to train ({counts['chosen']:,} chosen), {counts['held_out']:,} held out"
        lines.append(f"- {name}: {rows}")
    dropped = {**_positive(convert.get("dropped")), **_positive(tokens.get("dropped"))}
    lines.append(f"- dropped: {_counts(dropped) if dropped else 'none'}")
    if tokens.get("truncated"):
        lines.append(f"- truncated: {tokens['truncated']}")
    return "## Data\n\n" + "\n".join(lines)


def _curve(curve: Curve) -> str:
    if not curve.steps:
        return ""
    places = sorted({round(i * (len(curve.steps) - 1) / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)})
    rows = [(str(curve.steps[place]), _number(curve.losses[place])) for place in places]
    heldout = ", ".join(f"{_number(loss)} at step {step}" for step, loss in sorted(curve.heldout.items())[-_CURVE_POINTS:])
    tail = f"\n\nHeld out: {heldout}." if heldout else ""
    return f"## Training loss\n\n`{sparkline(curve.losses)}`\n\n{_table(('step', 'loss'), rows)}{tail}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as a row of bars: each the mean of its stretch, between the lowest and the highest."""
    width = min(width, len(values))
    means = []
    for bar in range(width):
        stretch = values[bar * len(values) // width : (bar + 1) * len(values) // width]
        means.append(sum(stretch) / len(stretch))
    low, high = (min(means), max(means)) if means else (0.0, 0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _cost(facts: Facts) -> str:
    cost = facts.cost
    if not cost:
        return ""
    ranks = f"{facts.ranks} ranks, " if facts.ranks else ""
    lines = [f"- {ranks}{cost.get('seconds', 0.0) / 3600:.2f} h", f"- {cost.get('gpu_hours', 0.0):.2f} GPU-hours"]
    if (price := facts.config.registry.gpu_hour_price) is not None:
        lines.append(f"- {cost.get('gpu_hours', 0.0) * price:.2f} at {price:g} a GPU-hour")
    if "energy_kwh" in cost:
        lines.append(f"- {cost['energy_kwh']:.3f} kWh (GPUs only, by their own counters)")
    return "## Cost\n\n" + "\n".join(lines)


def _settings(facts: Facts) -> str:
    """Settings that differ from the defaults, and the ones people ask for first."""
    default = {name: value for name, value, _ in settings.documentation()}
    always = {"train.lr", "train.epochs", "train.global_batch", "train.precision", "train.seed"}
    skipped = ("name", "schedule.", "registry.")
    changed = {
        name: value
        for name, value in facts.config.flat().items()
        if not name.startswith(skipped) and (name in always or _json(default.get(name)) != _json(value))
    }
    return "## Settings\n\n" + "\n".join(f"- `{name}`: {value}" for name, value in changed.items())


def _json(value: Any) -> Any:
    return str(value) if value is not None else None


def _origin(facts: Facts) -> str:
    lines = [f"- {name.removeprefix('talaria.')}: `{facts.tags[name]}`" for name in _ORIGIN if name in facts.tags]
    return "## Origin\n\n" + "\n".join(lines) if lines else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _positive(counts: Any) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count} if isinstance(counts, dict) else {}


def _counts(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
