"""The HTTP server: routes, errors in OpenAI's shape, who may ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from talaria.serving.api.access import check_key
from talaria.serving.api.chat import ChatCompletions
from talaria.serving.api.feedback import Feedback
from talaria.serving.api.metrics import Metrics
from talaria.serving.api.request import Refusal
from talaria.serving.feedback.traces import TraceWriter
from talaria.serving.follower import AliasFollower

_HEALTH_SECONDS = 10.0
Endpoint = Callable[[Request], Awaitable[Response]]


def make_app(
    follower: AliasFollower,
    metrics: Metrics,
    *,
    key: str | None,
    most_bytes: int = 4_000_000,
    traces: TraceWriter | None = None,
) -> Starlette:
    """`key`: what clients send; None: none is asked for, and only this machine's names for itself are answered to.

    `most_bytes`: largest body of a request. `traces`: where requests are kept; None: nowhere. It is closed with the server.
    """
    began = int(time.time())

    def known(endpoint: Endpoint) -> Endpoint:
        async def checked(request: Request) -> Response:
            check_key(request, key)
            return await endpoint(request)

        return checked

    def described() -> dict[str, object]:
        return {"id": follower.source.model_id, "object": "model", "created": began, "owned_by": "talaria"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described()]})

    async def model(request: Request) -> Response:
        if request.path_params["name"] != follower.source.model_id:
            name = request.path_params["name"]
            raise Refusal(f"There is no model {name!r} here.", "model", status=404, code="model_not_found")
        return JSONResponse(described())

    async def health(request: Request) -> Response:
        """200 where a model answers; what it is only to whoever has the key."""
        answers = await asyncio.to_thread(follower.engine.answers, _HEALTH_SECONDS)
        state: dict[str, object] = {"status": "ok" if answers else "the model does not answer"}
        try:
            check_key(request, key)
            state |= follower.state()
        except Refusal:
            pass
        return JSONResponse(state, 200 if answers else 503)

    async def numbers(request: Request) -> Response:
        metrics.running.set(follower.engine.running)
        metrics.waiting.set(follower.engine.waiting)
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        follower.start()
        yield
        follower.stop()
        if traces is not None:
            await asyncio.to_thread(traces.close)

    names = ["localhost", "127.0.0.1", "[::1]", "::1"]  # a site whose name points here, as in DNS rebinding, is not among them
    return Starlette(
        routes=[
            Route("/v1/chat/completions", known(ChatCompletions(follower, metrics, most_bytes, traces)), methods=["POST"]),
            Route("/v1/feedback", known(Feedback(traces, most_bytes)), methods=["POST"]),
            Route("/v1/models", known(models)),
            Route("/v1/models/{name:path}", known(model)),
            Route("/health", health),
            Route("/metrics", known(numbers)),
        ],
        exception_handlers={Refusal: _refused, HTTPException: _not_found, 500: _broken},
        middleware=[] if key else [Middleware(TrustedHostMiddleware, allowed_hosts=names)],
        lifespan=lifespan,
    )


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse(error.body, error.status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path}: {error.detail.lower()}."
    return JSONResponse(Refusal(sentence, code=None).body, error.status_code, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse(Refusal("The server made a mistake; its log has more.", kind="server_error").body, 500)
