"""A new revision on the hub fires once; the same one never again, whatever restarts in between."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from talaria_airflow.triggers.hub_revision import HubRevisionTrigger

REPO = "someone/conversations"


def play(story: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own: a browser's test that ran before in this process leaves its event loop running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, story).result()


class StandIn(ThreadingHTTPServer):
    """The hub's answer to "which commit is this branch at?", and nothing else."""

    commit = "a" * 40
    broken = False
    asked = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.asked += 1
        found = REPO in self.path and not self.server.broken
        body = json.dumps({"id": REPO, "sha": self.server.commit, "siblings": []}).encode()
        self.send_response(200 if found else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[StandIn]:
    from huggingface_hub import constants

    server = StandIn()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


class State:
    """What Airflow keeps of an asset, over restarts of the triggerer."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    async def aget(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    async def aset(self, key: str, value: Any) -> None:
        self.values[key] = value


def started(state: State) -> AsyncIterator[Any]:
    """A trigger as the triggerer makes it: from its serialized form, with the asset's state handed in."""
    from airflow.sdk.module_loading import import_string

    path, arguments = HubRevisionTrigger(REPO, "main", poll_seconds=0.02).serialize()
    trigger = import_string(path)(**arguments)
    trigger.asset_state_store = state
    return aiter(trigger.run())


async def is_silent(events: AsyncIterator[Any], hub: StandIn) -> bool:
    """Whether the trigger looks at the hub three more times without an event."""
    waiting = asyncio.ensure_future(anext(events))
    asked = hub.asked
    while hub.asked < asked + 3 and not waiting.done():
        await asyncio.sleep(0.01)
    silent = not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return silent


def test_the_first_look_is_no_event(hub: StandIn) -> None:
    async def story() -> None:
        state = State()
        assert await is_silent(started(state), hub)
        assert list(state.values.values()) == ["a" * 40]

    play(story())


def test_each_revision_fires_once_and_tells_its_commit(hub: StandIn) -> None:
    async def story() -> None:
        state = State()
        assert await is_silent(started(state), hub)
        events = started(state)
        for letter in "bc":
            hub.commit = letter * 40
            assert (await anext(events)).payload == {"repo": REPO, "revision": "main", "commit": letter * 40}
        assert await is_silent(events, hub)

    play(story())


def test_a_restarted_triggerer_does_not_fire_again(hub: StandIn) -> None:
    async def story() -> None:
        state = State()
        state.values["revision"] = "0" * 40
        first = started(state)
        await anext(first)
        assert await is_silent(first, hub)  # the event was taken, so the commit is on record
        again = started(state)
        assert await is_silent(again, hub)
        hub.commit = "b" * 40
        third = started(state)
        assert (await anext(third)).payload["commit"] == "b" * 40

    play(story())


def test_a_hub_that_does_not_answer_is_asked_again(hub: StandIn) -> None:
    async def story() -> None:
        hub.broken = True
        state = State()
        state.values["revision"] = "0" * 40
        events = started(state)
        waiting = asyncio.ensure_future(anext(events))
        while not hub.asked:
            await asyncio.sleep(0.01)
        hub.broken = False
        assert (await waiting).payload["commit"] == "a" * 40

    play(story())
