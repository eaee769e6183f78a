"""What comes before the alias moves: the gate's numbers, measured where the accelerators are, and a person's answer."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.sdk import Context
from talaria.config import load as settings
from talaria.config.evaluation_settings import EXACT_MATCH, TASK
from talaria.store.store import Store

from talaria_airflow.notifiers.alert import Alert
from talaria_airflow.operators import links
from talaria_airflow.operators.stage import StageOperator, as_task_failure, given, given_output, store_root
from talaria_airflow.operators.xcom import storable

APPROVE, REJECT = "Approve", "Reject"
ANSWER_DAYS = 7
EXAMPLES = 5
"""Held-out prompts whose answers the question shows."""


class CompareOperator(StageOperator):
    """Ask the gate what it would decide, by `talaria promote --dry-run` beneath the reaper, which moves no alias.

    Where the champion was never measured on the candidate's held-out conversations it is run on them now: that takes an
    accelerator, as evaluation does. The number is kept on the champion's version, so `promote` needs none.
    Returns what `registry.promotion.promote.preview` tells, and `numbers` and `examples`, which the question to a person shows.

    :param registered: what the task `register` returned.
    :param evaluated: what the task `evaluate` returned.
    """

    template_fields = (*StageOperator.template_fields, "registered", "evaluated")
    operator_extra_links = (links.AnswersLink(), links.ModelVersionLink())

    def __init__(self, *, registered: Any, evaluated: Any, **kwargs: Any) -> None:
        super().__init__(stage="compare", inputs={}, **kwargs)
        self.registered = registered
        self.evaluated = evaluated

    def execute(self, context: Context) -> dict[str, Any]:
        with as_task_failure(), tempfile.TemporaryDirectory(prefix="talaria-") as scratch:
            config = settings.parse(given("configure", self.config), "configuration")
            store = Store(self.store or store_root())
            evaluated = given_output(store, "evaluate", self.evaluated)
            registered = given("register", self.registered)
            model, version = registered["model"], registered["candidate"]
            answer = Path(scratch) / "answer.json"
            (Path(scratch) / "config.yaml").write_text(config.model_dump_json())
            words = ["promote", model, str(version), "--dry-run", "--config", str(Path(scratch) / "config.yaml")]
            self.run_command([*words, "--store", str(store.root), "--output", str(answer)], context, Path(scratch))
            compared = json.loads(answer.read_text())
        champions = compared.pop("beside", {})
        numbers = _numbers(compared, evaluated.facts, champions.get("metrics", {}))
        compared |= {"numbers": numbers, "examples": _examples(evaluated.path, champions.get("answers", {}))}
        addresses = {"url": registered.get("model_url") or "", "answers_url": links.answers_page(evaluated.key)}
        links.show(context, links.ModelVersionLink, addresses["url"])
        links.show(context, links.AnswersLink, addresses["answers_url"])
        return storable(compared | addresses)


class AskOperator(HITLOperator):
    """Put the candidate before a person: its numbers and answers beside the base model's and the champion's.

    While it waits it takes no slot, and other runs go on. Without an answer in ANSWER_DAYS days nothing is promoted.

    :param compared: what CompareOperator returned.
    """

    template_fields = (*HITLOperator.template_fields, "compared")

    def __init__(self, *, compared: Any, channels: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(
            subject="Promote?",
            options=[APPROVE, REJECT],
            defaults=REJECT,
            response_timeout=timedelta(days=ANSWER_DAYS),
            execution_timeout=None,
            notifiers=[Alert("{{ dag.dag_id }} {{ run_id }} waits for approval: {{ ti.log_url }}", channels)],
            **kwargs,
        )
        self.compared = compared

    def execute(self, context: Context) -> Any:
        with as_task_failure():
            compared = given("compare", self.compared)
        # not templates: what the data says must not be read as one
        self.subject = f"Promote {compared['model']} {compared['version']}?"
        self.body = question(compared)
        return super().execute(context)


def question(compared: Mapping[str, Any]) -> str:
    """Return the question in Markdown: a table of rounded numbers, the gate's word, some answers, the version's address."""
    columns = ["base", "champion", "candidate"] if compared["champion"] else ["base", "candidate"]
    named = {"champion": f"champion (version {compared['champion']})", "candidate": f"candidate (version {compared['version']})"}
    lines = [_row("", *(named.get(column, column) for column in columns)), _row(*["---"] * (len(columns) + 1))]
    for name, values in compared["numbers"].items():
        lines.append(_row(name, *(_rounded(values.get(column)) for column in columns)))
    told = compared["reason"].replace("\n", "  \n")  # Markdown's line breaks
    parts = ["\n".join(lines), f"The gate would promote it: {told}"]
    for example in compared["examples"]:
        told = [_row(name, _cell(str(example[key]))) for name, key in _SHOWN if example.get(key) is not None]
        parts.append("\n".join([_row("prompt", _cell(example["prompt"])), _row("---", "---"), *told]))
    if compared.get("answers_url"):
        parts.append(f"[Answers of base and candidate side by side]({compared['answers_url']})")
    if compared.get("url"):
        parts.append(f"[The version in MLflow]({compared['url']})")
    return "\n\n".join(parts)


_SHOWN = (("reference", "reference"), ("base", "base"), ("champion", "champion"), ("candidate", "tuned"))


def _numbers(compared: Mapping[str, Any], facts: Mapping[str, Any], champions: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a measure -> its value for base, champion and candidate. `champions`: metric -> the champion's mean."""
    exact = {"base": facts.get("base_exact_match"), "champion": champions.get(EXACT_MATCH), "candidate": facts.get("exact_match")}
    tasks = {
        f"task {name}": {"base": one["base"], "champion": champions.get(f"{TASK}/{name}"), "candidate": one["tuned"]}
        for name, one in (facts.get("tasks") or {}).items()
    }
    return {"held-out loss": dict(compared["losses"]), "exact match": exact, **tasks}


def _examples(evaluated: Path, champions: Mapping[str, str]) -> list[dict[str, Any]]:
    """The first held-out prompts with their answers, those first on which base and candidate differ.

    `champions`: row -> the champion's answer.
    """
    from talaria.evaluation.stage import SAMPLES

    with (evaluated / SAMPLES).open(encoding="utf-8") as file:
        samples = [json.loads(line) for line in file]
    samples.sort(key=lambda sample: sample["base"] == sample["tuned"])
    kept = ("prompt", "reference", "base", "tuned")
    return [{key: sample[key] for key in kept} | {"champion": champions.get(str(sample["row"]))} for sample in samples[:EXAMPLES]]


def _rounded(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str, most: int = 300) -> str:
    """Text of a model as one table cell of Markdown: nothing in it is read as markup."""
    short = " ".join(text.split())
    short = short if len(short) <= most else f"{short[:most]}…"
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]()<>#+-.!|~" else letter for letter in short)
