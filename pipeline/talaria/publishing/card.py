"""The card of a published model: front matter that the hub validates, and what others need to know.

Paths and addresses of the machine that trained stay out of it: of the settings it lists those of data, tokens and training.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from talaria.common.errors import DataError
from talaria.publishing.licences import FoundCard
from talaria.publishing.registered import Registered
from talaria.registry.versions import LOSS, as_number

_KEPT = ("Quality", "Data", "Training loss")
_SHOWN_SETTINGS = ("train.", "tokenize.", "convert.", "evaluate.", "base.repo", "base.shape", "download.repo", "download.files")
_SHOWN_ORIGIN = ("train_key", "data.digest", "base.revision", "git_commit")
_HIDDEN_SETTINGS = ("convert.function", "evaluate.tasks", "evaluate.benchmarks")
"""Code, files and judges of one's own; how tasks went is told under Quality."""
_PLACE = re.compile(r"(?:^|[\s'\"\[({=,:])(?:/|~|\.\.?/|[A-Za-z][A-Za-z0-9+.-]*:/)")
"""A path or an address, anywhere in a value."""
_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="auto")
messages = [{{"role": "user", "content": "Hello"}}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=256)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```"""


@dataclass(frozen=True)
class Statements:
    """What was decided or looked up for a card."""

    name: str
    """What the reader loads the model by."""
    base_model: str | None
    """On the hub; None where the base is a local folder or random weights."""
    licence: Mapping[str, str] = field(default_factory=dict)
    licence_from: str = ""
    base: FoundCard = field(default_factory=FoundCard)
    data: Sequence[FoundCard] = ()
    """Of each source of the data."""
    needs_5: bool = False
    """Whether transformers 4 would read other rotary settings."""


def card(registered: Registered, said: Statements) -> str:
    """Return README.md. Raises DataError where the hub's own reader would not take its front matter."""
    from huggingface_hub import ModelCardData

    about: dict[str, Any] = dict(said.licence)
    data = ModelCardData(
        model_name=registered.model,
        base_model=said.base_model,
        base_model_relation="finetune" if said.base_model else None,
        datasets=registered.repositories or None,
        eval_results=list(_results(registered)) or None,
        language=list(dict.fromkeys(code for found in said.data for code in found.languages)) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["talaria", "sft"],
        **about,
    )
    sections = [_head(registered, said), "## Use\n\n" + _USE.format(name=said.name)]
    sections += [f"## {title}\n\n{registered.sections[title]}" for title in _KEPT if title in registered.sections]
    sections += [_licence(registered, said), _settings(registered), _origin(registered)]
    text = f"---\n{data.to_yaml()}\n---\n" + "\n\n".join(section for section in sections if section) + "\n"
    validate(text)
    return text


def validate(text: str) -> None:
    """Raise DataError where the front matter is not what huggingface_hub reads back, without asking the hub."""
    import yaml
    from huggingface_hub import ModelCard

    try:
        metadata: dict[str, Any] = ModelCard(text, ignore_metadata_errors=False).data.to_dict()  # type: ignore[no-untyped-call]
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"The card's front matter is not valid: {error}") from None
    if strange := next(_not_plain(metadata), None):
        raise DataError(f"The card's front matter holds {strange!r}, which is no plain YAML value.")


def _not_plain(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from _not_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _not_plain(inner)
    elif type(value) not in (str, int, float, bool, type(None)) or (isinstance(value, float) and not math.isfinite(value)):
        yield value


def _results(registered: Registered) -> Iterator[Any]:
    """Yield the held-out loss and, of a final model, the share of answers that are exactly right."""
    from huggingface_hub import EvalResult

    single = registered.repositories[0] if len(registered.data) == 1 and registered.repositories else None
    on: dict[str, Any] = {
        "task_type": "text-generation",
        "dataset_type": single or "held-out",
        "dataset_name": f"{_data_name(registered)} (held out)",
        "dataset_revision": registered.tags.get("talaria.data.revision") if single else None,
    }
    measured = (
        ("loss", "held-out loss (mean per supervised token)", registered.tags.get(LOSS)),
        ("exact_match", "exact match on held-out prompts", registered.tags.get("talaria.exact_match")),
    )
    for kind, name, text in measured:
        value = as_number(text)
        if value is not None and math.isfinite(value):
            yield EvalResult(metric_type=kind, metric_name=name, metric_value=float(value), **on)


def _data_name(registered: Registered) -> str:
    return ", ".join(dict.fromkeys(map(_source_name, registered.data)))


def _source_name(data: Mapping[str, Any]) -> str:
    return {"hub": str(data.get("repo")), "local": "private data", "sample": "talaria-sample"}[data["source"]]


def _base_name(registered: Registered, said: Statements) -> str:
    return said.base_model or {"random": "random weights", "local": "a private base model"}[registered.base["source"]]


def _head(registered: Registered, said: Statements) -> str:
    how = "LoRA adapters, merged" if registered.settings["train"].get("lora", {}).get("rank") else "all parameters"
    base = said.base_model or _base_name(registered, said).capitalize()
    text = (
        f"# {registered.model}\n\n{base}, fine-tuned ({how}) on {_data_name(registered)} with Talaria. "
        f"This is version {registered.version}."
    )
    return text + (" It needs transformers 5: version 4 reads other rotary settings." if said.needs_5 else "")


def _licence(registered: Registered, said: Statements) -> str:
    own = said.licence.get("license_name") or said.licence.get("license")
    lines = [f"- This model: {f'{own} ({said.licence_from})' if own else 'not stated'}."]
    lines.append(f"- Base model, {_base_name(registered, said)}: {said.base.stated()}.")
    stated = [f"- Data, {_source_name(data)}: {found.stated()}." for data, found in zip(registered.data, said.data, strict=True)]
    lines += dict.fromkeys(stated)
    return "## Licence\n\n" + "\n".join(lines)


def _settings(registered: Registered) -> str:
    lines = []
    for line in registered.sections.get("Settings", "").splitlines():
        name, _, value = line.removeprefix("- `").partition("`: ")
        if name.startswith(_SHOWN_SETTINGS) and name not in _HIDDEN_SETTINGS and not _PLACE.search(value):
            lines.append(line)
    return "## Settings\n\n" + "\n".join(lines) if lines else ""


def _origin(registered: Registered) -> str:
    lines = [line for line in registered.sections.get("Origin", "").splitlines() if line[2:].partition(":")[0] in _SHOWN_ORIGIN]
    return "## Origin\n\n" + "\n".join(lines) if lines else ""
