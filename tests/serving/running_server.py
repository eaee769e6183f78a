"""`talaria serve` within the tests' process, on a free loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from openai import OpenAI
from talaria.serving.api.app import make_app
from talaria.serving.api.metrics import Metrics
from talaria.serving.api.server import bound
from talaria.serving.decoding.engine import Limits
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.serving.feedback.traces import TraceWriter
from talaria.serving.follower import AliasFollower


@dataclass
class Running:
    url: str
    follower: AliasFollower
    openai: OpenAI
    http: httpx.Client

    def ask(self, text: str, **options: Any) -> Any:
        return self.openai.chat.completions.create(
            model=self.follower.source.model_id, messages=[{"role": "user", "content": text}], **options
        )

    def post(self, body: Any, path: str = "/v1/chat/completions") -> httpx.Response:
        return self.http.post(path, json=body)


@contextmanager
def serving(
    source: ServedSource,
    *,
    key: str | None = None,
    limits: Limits | None = None,
    most_bytes: int = 100_000,
    traces: TraceWriter | None = None,
) -> Iterator[Running]:
    """The alias is looked at when a test says so (`follower.look`)."""
    metrics = Metrics()
    follower = AliasFollower(source, limits or Limits(), poll=3600, on_swap=metrics.swapped, on_failure=metrics.failed_loads.inc)
    listener = bound("127.0.0.1", 0)
    config = uvicorn.Config(
        make_app(follower, metrics, key=key, most_bytes=most_bytes, traces=traces), log_config=None, lifespan="on"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    listener.listen()  # a client that comes before the server does waits
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with (
            OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0, timeout=120) as client,
            httpx.Client(base_url=url, timeout=120, trust_env=False) as http,
        ):
            yield Running(url, follower, client, http)
    finally:
        server.should_exit = True
        thread.join()
        assert follower.engine.join(60), "the engine's thread ends with the server"
