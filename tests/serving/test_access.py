"""Who may ask, how much may wait, what health and metrics say."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from talaria.common.errors import UserError
from talaria.serving.api.access import key_for
from talaria.serving.api.server import bound, serve
from talaria.serving.client import KEY
from talaria.serving.decoding.batch import Batch
from talaria.serving.decoding.engine import Limits
from talaria.serving.decoding.loaded_model import ServedSource

from tests.serving.running_server import Running, serving


def test_a_key_is_asked_for_everywhere_but_at_health(folders: dict[str, Path]) -> None:
    with serving(ServedSource(str(folders["train"] / "model")), key="sesame-open") as running:
        for path in ("/v1/models", "/metrics"):
            reply = running.http.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
        assert running.post({}).status_code == 401
        wrong = running.http.get("/v1/models", headers={"Authorization": "Bearer sesame"})
        assert wrong.status_code == 401
        assert running.http.get("/health").json() == {"status": "ok"}
        known = {"Authorization": "Bearer sesame-open"}
        assert running.http.get("/health", headers=known).json()["model"] == "model"
        assert running.ask("Say green").choices


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_others_than_this_machine_need_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    with pytest.raises(UserError, match=KEY):
        serve(ServedSource("no folder is looked at before"), host=host)
    monkeypatch.setenv(KEY, "sesame")
    assert key_for(host) == "sesame"


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY, raising=False)
    taken = bound("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(UserError, match="cannot be listened on"):
        serve(ServedSource("no folder is looked at before"), port=taken.getsockname()[1])
    taken.close()


def test_another_name_for_this_machine_is_refused(served: Running) -> None:
    """A page of another site whose name points to 127.0.0.1 gets nothing."""
    assert served.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400


def test_too_many_that_wait_get_429(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    held, go_on = threading.Event(), threading.Event()
    step = Batch.step

    def slow(self: Batch) -> Any:
        held.set()
        assert go_on.wait(60)
        return step(self)

    with serving(ServedSource(str(folders["train"] / "model")), limits=Limits(rows=1, waiting=1)) as running:
        monkeypatch.setattr(Batch, "step", slow)
        replies: list[httpx.Response] = []
        body = {"model": "model", "messages": [{"role": "user", "content": "Say green"}]}
        clients = [threading.Thread(target=lambda: replies.append(running.post(body))) for _ in range(2)]
        clients[0].start()
        assert held.wait(60)
        clients[1].start()
        while not running.follower.engine.waiting:
            pass
        refused = running.post(body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert running.post({**body, "n": 2}).status_code == 429
        go_on.set()
        for client in clients:
            client.join()
        assert [reply.status_code for reply in replies] == [200, 200]


def test_a_model_that_fails_answers_500_and_is_not_healthy(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("out of memory")

    with serving(ServedSource(str(folders["train"] / "model"))) as running:
        engine = running.follower.engine
        with monkeypatch.context() as patched:
            patched.setattr(Batch, "_forward", broken)
            body = {"model": "model", "messages": [{"role": "user", "content": "Say green"}]}
            assert running.post(body).json()["error"]["type"] == "server_error"
            engine._last_step = 0.0
            assert running.http.get("/health").status_code == 503
            events = running.post({**body, "stream": True}).text
            assert "server_error" in events
            assert "[DONE]" not in events
        assert running.ask("123456 Say green").choices[0].message.content == "green!", "the next ones are answered"
        assert running.http.get("/health").status_code == 200


def test_a_client_that_goes_away_frees_its_place(folders: dict[str, Path]) -> None:
    with serving(ServedSource(str(folders["base"]))) as running:  # a base that never learned to stop
        body = {"model": running.follower.source.model_id, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20_000}
        with running.http.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as reply:
            next(reply.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            running.http.post("/v1/chat/completions", json=body, timeout=0.5)
        engine = running.follower.engine
        while engine.running or engine.waiting:
            threading.Event().wait(0.01)


def test_metrics_count_requests_and_tokens(folders: dict[str, Path]) -> None:
    with serving(ServedSource(str(folders["train"] / "model"))) as running:
        answer = running.ask("123456 Say green")
        list(running.ask("123456 Say green", stream=True))
        running.post({"model": "other", "messages": [{"role": "user", "content": "x"}]})
        text = running.http.get("/metrics").text
        assert 'talaria_requests_total{status="200"} 2.0' in text
        assert 'talaria_requests_total{status="404"} 1.0' in text
        assert f"talaria_answer_tokens_total {2.0 * answer.usage.completion_tokens}" in text
        assert "talaria_first_piece_seconds_count 1.0" in text
