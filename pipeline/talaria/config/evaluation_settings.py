"""Settings of what decides over a model: its evaluation, the tasks it is tested on, and the gate before `champion`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from talaria.config.section import YEAR_SECONDS, Int, NotInKey, Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
Verdicts = Literal[
    "exact", "contains", "regex", "number", "choice", "json_schema", "tool_call", "similarity", "function", "rate", "pairwise"
]


class JudgeModel(Section):
    """A model that judges answers, behind an OpenAI-compatible address (judge: rate, pairwise)."""

    base_url: str = Field(description="Address up to and without /chat/completions, for example http://127.0.0.1:8000/v1.")
    model: str = Field(min_length=1, description="Model's name at that address.")
    api_key_env: Annotated[str | None, NotInKey] = Field(
        None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="Environment variable that holds the key; absent: none is sent."
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


class Evaluate(Section):
    prompts: int = Field(64, ge=0, le=1_000_000, description="Held-out prompts to answer; exact match is reported.")
    max_new_tokens: int = Field(128, ge=1, le=1_000_000, description="Longest answer, in tokens.")
    batch_tokens: Annotated[int, NotInKey] = Field(9216, ge=8, le=1_000_000_000, description="Largest held-out batch, in tokens.")


class Promote(Section):
    margin: float = Field(0.0, ge=0, description="Held-out loss must be lower than base's and champion's by more than this.")
    approval: bool = Field(False, description="Ask a person before the champion alias moves (Airflow only).")
