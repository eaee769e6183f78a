"""The DAG's last task: the promoted version is served, or waited for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from talaria.common.errors import Unavailable, UserError
from talaria.serving.client import KEY, ServedModel
from talaria.serving.decoding.loaded_model import ServedSource

from tests.serving.running_server import serving
from tests.support import tiny_pipeline


def test_the_dag_waits_for_the_swap_only_where_something_is_served(model: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from talaria_airflow.dag.tasks import wait_for_swap

    def given(url: str | None) -> dict[str, Any]:
        return tiny_pipeline.config(serving={"url": url, "swap_seconds": 0}).model_dump(mode="json")

    monkeypatch.setenv(KEY, "sesame")
    promoted = {"model": model, "version": 1, "promoted": True}
    with serving(ServedSource(f"models:/{model}@champion", uri), key="sesame") as running:
        assert wait_for_swap(given(running.url), promoted)["version"] == 1
        with pytest.raises(Unavailable, match=r"version 2 of .* is not served, but 1"):
            wait_for_swap(given(running.url), {**promoted, "version": 2})
        with pytest.raises(AirflowSkipException, match="Nothing was promoted"):
            wait_for_swap(given(running.url), {**promoted, "promoted": False})
        with pytest.raises(UserError, match=f"serves {model}, not other"):
            wait_for_swap(given(running.url), {**promoted, "model": "other"})
        monkeypatch.delenv(KEY)
        with pytest.raises(UserError, match="wants another key"):
            wait_for_swap(given(running.url), promoted)
    with pytest.raises(Unavailable, match="does not answer"):
        wait_for_swap(given(running.url), promoted)
    with pytest.raises(AirflowSkipException, match=r"serving\.url is not set"):
        wait_for_swap(given(None), promoted)


def test_a_call_is_asked_for_and_told_as_tasks_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages parquet has calls as JSON text, OpenAI's clients send their arguments as one."""
    sent: dict[str, Any] = {}

    def asked(self: ServedModel, method: str, path: str, body: Any = None) -> Any:
        sent.update(body)
        return {"choices": [{"message": {"content": "wet"}}]}

    monkeypatch.setattr(ServedModel, "_asked", asked)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    turns = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": json.dumps([call])}]
    with ServedModel("http://127.0.0.1:9", "calls") as served:
        assert served.message(turns, json.dumps([{"type": "function", "function": {"name": "weather"}}]))["content"] == "wet"
    (made,) = sent["messages"][1]["tool_calls"]
    assert made == {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Oslo"}'}}
    assert sent["tools"][0]["function"]["name"] == "weather"
