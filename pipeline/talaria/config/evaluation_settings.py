"""Settings of what decides over a model: its evaluation, the tasks it is tested on, and the gate before `champion`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from talaria.config.section import YEAR_SECONDS, InKeyUnlessDefault, Int, NotInKey, Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
HELDOUT_LOSS, EXACT_MATCH, TASK = "heldout_loss", "exact_match", "task"
"""Metrics that the gate knows: the first two, and `task/NAME`; a slice of one has its tag behind it, as in `task/NAME/TAG`."""
Verdicts = Literal[
    "exact", "contains", "regex", "number", "choice", "json_schema", "tool_call", "similarity", "function", "rate", "pairwise"
]


class JudgeModel(Section):
    """A model that judges answers, behind an OpenAI-compatible address (judge: rate, pairwise)."""

    base_url: str = Field(description="Address up to and without /chat/completions, for example http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="Model's name at that address.")
    api_key_env: Annotated[str | None, NotInKey] = Field(
        None,
        pattern=r"^TALARIA_JUDGE_[A-Z0-9_]+$",  # whoever sets the address must not choose which secret is sent there
        description="Environment variable that holds the key, TALARIA_JUDGE_...; absent: none is sent.",
    )
    rubric: str | None = Field(None, description="What a good answer is; absent: it is correct and does what the user asked for.")
    max_requests: Int = Field(10_000, ge=1, description="Requests that an evaluation may send, retries included.")
    retries: Annotated[int, NotInKey] = Field(2, ge=0, le=100, description="Further attempts of a request that got no verdict.")
    timeout: Annotated[float, NotInKey] = Field(60.0, gt=0, le=86_400, description="Seconds for one request.")
    total_seconds: Annotated[float, NotInKey] = Field(
        3600.0, gt=0, le=YEAR_SECONDS, description="Seconds for all requests of a task."
    )
    at_a_time: Annotated[int, NotInKey] = Field(4, ge=1, le=1_024, description="Requests in flight.")

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"should be an address like http://127.0.0.1:8000/v1, got {value!r}")
        if parts.username or parts.password or parts.query:
            raise ValueError("should hold no user, password or query; name the key's environment variable in api_key_env")
        return value.rstrip("/")


class TaskSettings(Section):
    """A file of prompts and how their answers are judged."""

    name: str = Field(pattern=NAME, max_length=100, description="Name of the task, as reports and the gate call it.")
    file: Annotated[Path, NotInKey] = Field(
        description="JSONL file of prompts (docs/evaluation.md); a relative path counts from the working folder, or else from "
        "the configuration folder."
    )
    judge: Verdicts = Field("exact", description="How an answer is judged; an item may name another one.")
    ignore_case: bool = Field(False, description="Upper and lower case are equal (exact, contains, regex, similarity).")
    tolerance: float = Field(0.0, ge=0, description="Largest difference of a number that is right (number).")
    pass_score: float = Field(0.5, gt=0, le=1, description="Score from which an answer counts as right.")
    function: str | None = Field(None, description="'module:name' of your own function (item, answer) -> 0 to 1 (function).")
    judge_model: JudgeModel | None = Field(None, description="The model that judges (rate, pairwise).")
    max_new_tokens: int | None = Field(None, ge=1, le=1_000_000, description="Longest answer; absent: evaluate.max_new_tokens.")

    @model_validator(mode="after")
    def _has_what_its_judge_needs(self) -> TaskSettings:
        if self.judge in ("rate", "pairwise") and self.judge_model is None:
            raise ValueError(f"task {self.name}: judge {self.judge} needs judge_model (base_url and model)")
        if self.judge == "function" and self.function is None:
            raise ValueError(f"task {self.name}: judge function needs function, 'module:name' of your own")
        return self


class BenchmarkSettings(Section):
    """A public benchmark that lm-evaluation-harness knows, or one of your own in its form."""

    name: str = Field(pattern=NAME, max_length=100, description="Name, as reports and the gate call it (task/NAME).")
    task: str = Field(min_length=1, description="The harness's name of the task or group, for example arc_easy.")
    folder: Annotated[Path | None, NotInKey] = Field(
        None, description="Folder with the task's YAML and data; absent: the harness's own tasks, with data from the hub."
    )
    metric: str | None = Field(
        None, description="What counts, a number from 0 to 1 a question: METRIC, or METRIC,FILTER; absent: the first."
    )
    few_shot: Int | None = Field(None, ge=0, le=1_000, description="Solved examples before a question; absent: the task's.")
    limit: Int | None = Field(None, ge=1, description="Only the first so many questions (of each task of a group).")
    chat: bool = Field(True, description="Ask through the chat template; false: plain text.")
    pass_score: float = Field(0.5, gt=0, le=1, description="Score from which an answer counts as right.")


class Evaluate(Section):
    prompts: int = Field(64, ge=0, le=1_000_000, description="Held-out prompts to answer; exact match is reported.")
    max_new_tokens: int = Field(128, ge=1, le=1_000_000, description="Longest answer, in tokens.")
    batch_tokens: Annotated[int, NotInKey] = Field(9216, ge=8, le=1_000_000_000, description="Largest held-out batch, in tokens.")
    tasks: Annotated[list[TaskSettings], InKeyUnlessDefault] = Field(
        [], description="Files of prompts of your own and how answers are judged; docs/evaluation.md."
    )
    benchmarks: Annotated[list[BenchmarkSettings], InKeyUnlessDefault] = Field(
        [], description="Public benchmarks by name, through lm-evaluation-harness; docs/evaluation.md."
    )
    contamination: Annotated[Literal["warn", "refuse", "ignore"], InKeyUnlessDefault] = Field(
        "warn", description="What to do where a prompt of a task is part of the training data."
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Evaluate:
        names = self.tested
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"evaluate.tasks has two tasks called {twice[0]}; give each a name of its own")
        return self

    @property
    def tested(self) -> list[str]:
        """Names of all tasks and benchmarks, in the order in which they are taken."""
        return [task.name for task in self.tasks] + [benchmark.name for benchmark in self.benchmarks]


class GateMetric(Section):
    """A number that the gate compares, item by item."""

    name: str = Field(description="heldout_loss, exact_match or task/NAME; a slice of it: task/NAME/TAG, heldout_loss/SOURCE.")
    better: Literal["lower", "higher"] | None = Field(None, description="Absent: lower for losses, higher for the others.")
    margin: float = Field(0.0, ge=0, description="The candidate must be better by more than this; for a veto, not worse.")
    weight: float = Field(1.0, gt=0, description="Factor in the sum of improvements, where there are several metrics.")
    veto: bool = Field(False, description="Takes no part in the sum, but refuses a candidate that is worse beyond noise.")

    @field_validator("name")
    @classmethod
    def _is_known(cls, value: str) -> str:
        head, _, rest = value.partition("/")
        if head not in (HELDOUT_LOSS, EXACT_MATCH, TASK) or (head == TASK and not rest):
            raise ValueError(f"should be heldout_loss, exact_match or task/NAME, got {value!r}")
        return value

    @property
    def lower_is_better(self) -> bool:
        return (self.better or ("lower" if self.name.startswith(HELDOUT_LOSS) else "higher")) == "lower"


class Promote(Section):
    margin: float = Field(0.0, ge=0, description="Held-out loss must be lower than base's and champion's by more than this.")
    rule: Literal["noise", "plain"] = Field(
        "noise", description="noise: better by more than chance explains, compared item by item; plain: the mean is lower."
    )
    metrics: list[GateMetric] = Field(
        [], description="What the rule `noise` compares; absent: the held-out loss, with promote.margin. docs/evaluation.md."
    )
    regressions: Int | None = Field(
        None, ge=0, description="At most so many answers that the champion has right may be wrong; absent: any number."
    )
    approval: bool = Field(False, description="Ask a person before the champion alias moves; without Airflow the version waits.")

    @model_validator(mode="after")
    def _rules_do_not_mix(self) -> Promote:
        if self.rule == "plain" and (self.metrics or self.regressions is not None):
            raise ValueError("promote.rule plain compares mean losses only; leave out promote.metrics and promote.regressions")
        if self.metrics and self.margin:
            raise ValueError("promote.margin has no place beside promote.metrics; give the metric its own margin")
        if self.metrics and all(metric.veto for metric in self.metrics):
            raise ValueError("promote.metrics has vetoes only; name at least one metric that a candidate must be better in")
        return self

    @property
    def compared(self) -> list[GateMetric]:
        """The metrics of the rule `noise`."""
        return self.metrics or [GateMetric(name=HELDOUT_LOSS, margin=self.margin)]
