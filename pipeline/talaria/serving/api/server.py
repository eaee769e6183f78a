"""Run the server: `talaria serve MODEL`."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

from talaria.common.errors import UserError
from talaria.serving.api.access import key_for
from talaria.serving.decoding.engine import Limits
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.tracking.mlflow_client import tracking_uri

STOP_SECONDS = 60
"""How long answers may take to end when the server is stopped."""


def serve(
    source: ServedSource,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    poll: float = 10.0,
    traces: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Answer until a signal comes. Raises UserError where that cannot begin, before the model is loaded where possible.

    `traces`: MLflow's experiment in which requests are kept; None: they are not.
    """
    import uvicorn

    from talaria.serving.api.app import make_app
    from talaria.serving.api.metrics import Metrics
    from talaria.serving.feedback.traces import TraceWriter
    from talaria.serving.follower import AliasFollower

    key, limits = key_for(host), limits or Limits()
    listener = bound(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "alembic", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    metrics = Metrics()
    writer = None
    if traces is not None:
        writer = TraceWriter(source.uri or tracking_uri(), traces, on_loss=metrics.lost_traces.inc)
        say(f"Requests are kept as traces in MLflow's experiment {traces!r}.")
    say(f"Loading {source.name} ...")
    follower = AliasFollower(source, limits, poll=poll, on_swap=metrics.swapped, on_failure=metrics.failed_loads.inc)
    model, cached = follower.engine.model, limits.cached_tokens
    size = model.cache_bytes(cached) / 1e9
    say(f"{follower.fingerprint} answers; its cache takes at most {cached:,} tokens, {size:.2g} GB.")
    app = make_app(follower, metrics, key=key, traces=writer)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=STOP_SECONDS, lifespan="on"
    )
    address = listener.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    say(f"http://{shown}:{address[1]}/v1   model {source.model_id}, {'with a key' if key else 'without a key'}")
    uvicorn.Server(config).run(sockets=[listener])


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address, on which nobody listens yet. Raises UserError where it is taken."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise UserError(f"{host}:{port} cannot be listened on: {error.strerror or error}.") from None
    return listener
