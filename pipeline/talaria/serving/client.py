"""A served model as its clients see it: for the DAGs, which wait for it and test it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from talaria.common.errors import Unavailable, UserError

KEY = "TALARIA_SERVE_API_KEY"
"""Environment variable with the key that clients send as `Authorization: Bearer KEY`."""
_PASSING = (408, 425, 429, 502, 503, 504)
"""Answers that say nothing about the model; a later attempt may get another."""


class AnswerFailed(RuntimeError):
    """The model failed while it wrote an answer."""


class ServedModel:
    """The model behind one address of `talaria serve`; a context manager."""

    def __init__(self, url: str, model: str, *, timeout: float = 120.0) -> None:
        """`url`: without /v1. `model`: the registered model's name. The key comes from TALARIA_SERVE_API_KEY."""
        import httpx2

        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.url, self.model = url.rstrip("/"), model
        self._client = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)

    def __enter__(self) -> ServedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def state(self) -> dict[str, Any]:
        """What /health tells. Raises Unavailable where no model answers, UserError for another model or a wrong key."""
        state = dict(self._asked("GET", "/health"))
        if "model" not in state:
            raise UserError(f"{self.url}: wants another key; set {KEY} where the DAG's tasks run.")
        if state["model"] != self.model:
            raise UserError(f"{self.url}: serves {state['model']}, not {self.model}; correct serving.url.")
        return state

    def wait_for(self, version: int, seconds: float, pause: float = 2.0) -> dict[str, Any]:
        """Wait until this version answers. Raises Unavailable, with the server's reason, after so many seconds."""
        deadline = time.monotonic() + seconds
        while (state := self.state())["version"] != version:
            if time.monotonic() >= deadline:
                failed = state.get("failed") or {}
                why = f": {failed['reason']}" if failed else "."
                raise Unavailable(f"{self.url}: version {version} of {self.model} is not served, but {state['version']}{why}")
            time.sleep(pause)
        return state

    def message(self, messages: Sequence[Mapping[str, Any]], tools: str | None) -> dict[str, Any]:
        """The answer as OpenAI's message. messages, tools: as the messages parquet has them.

        Raises AnswerFailed where the model fails, Unavailable where the server is away or busy, UserError where it refuses.
        """
        body: dict[str, Any] = {"model": self.model, "messages": [_as_openai(message) for message in messages]}
        if tools:
            body["tools"] = json.loads(tools)
        answer = self._asked("POST", "/v1/chat/completions", body)
        return dict(answer["choices"][0]["message"])

    def _asked(self, method: str, path: str, body: Any = None) -> Any:
        import httpx2

        try:
            reply = self._client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise Unavailable(f"{self.url} does not answer ({type(error).__name__}).") from None
        if reply.status_code in _PASSING:
            raise Unavailable(f"{self.url}{path} answers {reply.status_code}.")
        try:
            value = reply.json()
            if reply.status_code == 200:
                return value
            why = value["error"]["message"]
        except (ValueError, KeyError, TypeError):
            why = "not a server of Talaria's"
        if reply.status_code == 500:
            raise AnswerFailed(f"{self.url}{path} answers 500: {why}")
        raise UserError(f"{self.url}{path} answers {reply.status_code}: {why}")


def _as_openai(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose tool calls are JSON text, with them as objects whose arguments are JSON text."""
    found = {name: value for name, value in message.items() if value is not None}
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [
            {
                "id": f"call_{number}",
                **call,
                "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)},
            }
            for number, call in enumerate(json.loads(calls))
        ]
    return found
