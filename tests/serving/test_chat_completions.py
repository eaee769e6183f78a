"""Requests as clients send them: answered as evaluation would, or refused in one sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.serving.running_server import Running

GREEN = "123456 Say green"


def body(**options: Any) -> dict[str, Any]:
    return {"model": "model", "messages": [{"role": "user", "content": GREEN}], **options}


def test_the_openai_client_gets_an_answer(served: Running) -> None:
    answer = served.ask(GREEN)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("green!", "stop")
    assert answer.model == "model"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens == len(served.follower.engine.model.encode_prompt(body()["messages"]))


def test_a_stream_is_the_same_answer_in_pieces(served: Running) -> None:
    whole = served.ask(GREEN)
    chunks = list(served.ask(GREEN, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == "green!"
    assert sum(map(bool, pieces)) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1


def test_answers_are_those_that_evaluation_measures(served: Running, folders: Any) -> None:
    """The same prompts, ends, length and greedy choice, in a batch with others."""
    from concurrent.futures import ThreadPoolExecutor

    import polars as pl

    lines = [json.loads(line) for line in (folders["evaluate"] / "samples.jsonl").read_text().splitlines()]
    rows = pl.read_parquet(folders["convert"] / "messages.parquet")["messages"]
    asked = [{"model": "model", "messages": rows[line["row"]].to_list()[:-1], "max_tokens": 8} for line in lines]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [reply.json()["choices"][0]["message"]["content"] for reply in pool.map(served.post, asked)]
    assert answers == [line["tuned"] for line in lines]


def test_an_answer_stops_before_a_stop_string_also_where_it_lies_across_pieces(served: Running) -> None:
    answer = served.ask(GREEN, stop=["en!"]).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("gre", "stop")
    chunks = served.ask(GREEN, stop=["xyz", "n!"], stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "gree"
    assert served.ask(GREEN, stop="enx").choices[0].message.content == "green!"


def test_length_cuts_an_answer_and_says_so(served: Running) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        answer = served.ask(GREEN, **{name: 1})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 1
        assert "green!".startswith(answer.choices[0].message.content)


def test_temperature_draws_and_a_seed_repeats(served: Running) -> None:
    def texts(**options: Any) -> list[str]:
        return [choice.message.content for choice in served.ask(GREEN, max_tokens=6, **options).choices]

    assert texts(n=3) == ["green!"] * 3  # greedy by default, as in evaluation
    hot = texts(n=8, temperature=2, seed=7)
    assert len(set(hot)) > 1
    assert texts(n=8, temperature=2, seed=7) == hot
    assert texts(n=8, temperature=2, seed=8) != hot
    assert texts(n=2, temperature=2, top_p=0.01, seed=1) == ["green!"] * 2


def test_text_that_looks_like_a_control_token_stays_text(served: Running) -> None:
    encode = served.follower.engine.model.encode_prompt
    plain, odd = (served.post(body(messages=[{"role": "user", "content": text}])).json() for text in ("Hi", "Hi<|im_end|>"))
    assert odd["usage"]["prompt_tokens"] == len(encode([{"role": "user", "content": "Hi<|im_end|>"}]))
    assert odd["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"] + 1


def test_parts_of_text_are_one_text(served: Running) -> None:
    parts = [{"type": "text", "text": "123456 "}, {"type": "text", "text": "Say green"}]
    assert served.post(body(messages=[{"role": "user", "content": parts}])).json()["choices"][0]["message"]["content"] == "green!"


def test_what_changes_nothing_is_taken(served: Running) -> None:
    nothing = {"frequency_penalty": 0, "logprobs": False, "logit_bias": None, "response_format": {"type": "text"}, "user": "me"}
    assert served.post(body(**nothing, tool_choice="auto", tools=[], stop=None)).status_code == 200


REFUSED = [
    ({"logprobs": True}, 400, "logprobs"),
    ({"frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format"),
    ({"parallel_tool_calls": False}, 400, "parallel_tool_calls"),
    ({"top_k": 5}, 400, "top_k"),
    ({"temperature": 3}, 400, "temperature"),
    ({"temperature": "hot"}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"n": 0}, 400, "n"),
    ({"n": True}, 400, "n"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens"),
    ({"stop": ["a", "b", "c", "d", "e"]}, 400, "stop"),
    ({"stop": ""}, 400, "stop"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"tool_choice": "required"}, 400, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400, "tool calls"),
    ({"tools": [{"type": "web_search"}]}, 400, "tools[0]"),
    ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]}]}, 400, "does not render tool_calls"),
    ({"messages": [{"role": "user", "content": "x", "reasoning_content": "y"}]}, 400, "does not render reasoning_content"),
    ({"messages": [{"role": "king", "content": "x"}]}, 400, "role"),
    ({"messages": [{"role": "user"}]}, 400, "content"),
    ({"messages": [{"role": "user", "content": "x", "mood": "bad"}]}, 400, "mood"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400, "image_url"),
    ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, 400, "weight"),
    ({"messages": [{"role": "user", "content": "word " * 5000}]}, 400, "tokens"),
    ({"max_tokens": 10**6}, 400, "tokens"),
    ({"model": "gpt-4"}, 404, "gpt-4"),
    ({"messages": [{"role": "user", "content": "x" * 200_000}]}, 413, "100,000 bytes"),
]


@pytest.mark.parametrize(("changed", "status", "named"), REFUSED, ids=[f"{next(iter(c))} {n}" for c, _, n in REFUSED])
def test_what_cannot_be_done_is_refused_in_one_sentence(
    served: Running, changed: dict[str, Any], status: int, named: str
) -> None:
    reply = served.post(body(**changed))
    error = reply.json()["error"]
    assert (reply.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert named in error["message"]
    assert error["message"].endswith(".")
    assert served.follower.source.name not in error["message"], "where files are is nobody's business"
    assert "\n" not in error["message"]


def test_other_paths_and_bodies_are_refused_in_the_same_shape(served: Running) -> None:
    replies = {
        404: served.http.get("/v1/embeddings"),
        405: served.http.get("/v1/chat/completions"),
        415: served.http.post("/v1/chat/completions", content=json.dumps(body()), headers={"content-type": "text/plain"}),
        400: served.http.post("/v1/chat/completions", content="{", headers={"content-type": "application/json"}),
    }
    for status, reply in replies.items():
        assert reply.status_code == status
        assert reply.json()["error"]["message"].endswith(".")


def test_half_of_a_character_is_the_clients_mistake(served: Running) -> None:
    asked = json.dumps(body(messages=[{"role": "user", "content": "a \ud800"}]))
    reply = served.http.post("/v1/chat/completions", content=asked, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["error"]["message"]) == (
        400,
        r"The body: \ud800 is half of a character and no text.",
    )


def test_models_are_listed(served: Running) -> None:
    assert [model.id for model in served.openai.models.list()] == ["model"]
    assert served.openai.models.retrieve("model").id == "model"
    assert served.http.get("/v1/models/other").status_code == 404
