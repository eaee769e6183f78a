"""A request for a chat completion: every parameter is followed, or refused in one sentence. Nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from talaria.common.printable import require_characters
from talaria.data.conversation.content import MESSAGE_ROLES, Message, Notes, TurnFields, message_of
from talaria.data.conversation.drop_reasons import Unusable
from talaria.data.conversation.tool_calls import tools_text
from talaria.serving.decoding.sampling import Sampling

_FIELDS = TurnFields("role", "content", MESSAGE_ROLES)
_MOST_STOPS = 4
AS_IT_IS: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "functions": ([],),
    "function_call": ("none",),
}
"""Parameters of OpenAI's that are taken at the values which change nothing, and at no other."""
NAMES_THE_CALLER = ("user", "safety_identifier", "prompt_cache_key")
"""Parameters that say who asks, and change no answer."""


class Refusal(Exception):
    """A request that is not answered: an HTTP status and OpenAI's error fields."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. A parameter that is null counts as absent."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int = Field(1, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = "auto"
    store: bool | None = None
    """False: the request is not kept as a trace."""

    @field_validator("stop")
    @classmethod
    def _stops_are_text(cls, value: str | list[str] | None) -> str | list[str] | None:
        listed = [value] if isinstance(value, str) else value or []
        if len(listed) > _MOST_STOPS or not all(listed):
            raise ValueError(f"should be at most {_MOST_STOPS} texts, none of them empty")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _calls_cannot_be_forced(cls, value: Any) -> Any:
        if value not in ("auto", "none"):
            raise ValueError("should be auto or none: this server cannot make the model call a tool")
        return value

    @model_validator(mode="after")
    def _limits_agree(self) -> ChatRequest:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; give one of them")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options has no meaning without stream: true")
        return self

    @property
    def limit(self) -> int | None:
        """Most tokens of an answer; None: the model's default."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def sampling(self) -> Sampling:
        default = Sampling()
        return Sampling(
            default.temperature if self.temperature is None else self.temperature,
            default.top_p if self.top_p is None else self.top_p,
            self.seed,
        )


@dataclass(frozen=True)
class Ask:
    """A request that is understood."""

    request: ChatRequest
    messages: list[Message]
    """As the messages parquet has them."""
    tools: str | None
    """JSON text of the tools that the model gets to see."""
    caller: str | None


def parse(body: bytes) -> Ask:
    """Raises Refusal."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("The body is not JSON.") from None
    if not isinstance(given, dict):
        raise Refusal("The body should be a JSON object.")
    try:
        require_characters(given)
    except ValueError as error:
        raise Refusal(f"The body: {error}.") from None
    given = {name: value for name, value in given.items() if value is not None}
    caller = next((given.pop(name) for name in NAMES_THE_CALLER if isinstance(given.get(name), str)), None)
    _refuse_what_would_change_something(given)
    try:
        request = ChatRequest.model_validate({name: value for name, value in given.items() if name not in AS_IT_IS})
    except ValidationError as error:
        raise refusal_of(error) from None
    tools = _tools(request.tools or [])
    messages = [_message(turn, number) for number, turn in enumerate(request.messages)]
    return Ask(request, messages, None if request.tool_choice == "none" else tools, caller)


def _refuse_what_would_change_something(given: dict[str, Any]) -> None:
    for name in AS_IT_IS.keys() & given.keys():
        value = given[name]
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in AS_IT_IS[name]):
            raise Refusal(f"{name} is not supported; leave it out.", name, code="unsupported_parameter")


def _tools(given: list[dict[str, Any]]) -> str | None:
    """The tools as the parquet has them. `strict` false says what is so anyway, and no training data has it. Raises Refusal."""
    tools = []
    for number, tool in enumerate(given):
        function = tool.get("function")
        if tool.get("type") != "function" or not isinstance(function, dict):
            raise Refusal(f"tools[{number}] should be of the type function.", f"tools[{number}]")
        if function.get("strict"):
            raise Refusal(f"tools[{number}]: strict is not supported; leave it out.", f"tools[{number}].function.strict")
        tools.append({**tool, "function": {name: value for name, value in function.items() if name != "strict"}})
    try:
        return tools_text(tools)
    except Unusable as error:
        raise Refusal(f"tools: {error.detail}.", "tools") from None


def _message(turn: dict[str, Any], number: int) -> Message:
    """A message as the data of a training would have it. Raises Refusal."""
    where, notes = f"messages[{number}]", Notes()
    if turn.get("role") not in MESSAGE_ROLES:
        raise Refusal(f"{where}: role should be one of {', '.join(MESSAGE_ROLES)}.", f"{where}.role")
    try:
        message = message_of(turn, _FIELDS, frozenset(), notes, where)
    except Unusable as error:
        raise Refusal(f"{error.detail}.", where) from None
    if unknown := sorted(notes.not_carried) or sorted({"train", "weight", "step_loss_mask"} & message.keys()):
        raise Refusal(f"{where}: {unknown[0]} is not supported; leave it out.", where)
    return message


def refusal_of(error: ValidationError) -> Refusal:
    """The first thing that is wrong, in OpenAI's form."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]"))
    if first["type"] == "extra_forbidden":
        return Refusal(f"{name} is not a parameter that this server knows; leave it out.", name, code="unknown_parameter")
    text = first["msg"].removeprefix("Value error, ").rstrip(".")
    return Refusal(f"{name}: {text}." if name else f"{text}.", name or None)
