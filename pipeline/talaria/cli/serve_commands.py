"""The command that serves a model."""

from __future__ import annotations

from typing import Annotated

import typer

from talaria.cli.app import DEFAULT_STORE, StoreDir, app, say


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or a model folder.")],
    host: Annotated[str, typer.Option(help="Address; beyond loopback, TALARIA_SERVE_API_KEY must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the alias.")] = 10.0,
    rows: Annotated[int, typer.Option(min=1, help="Most answers at the same time.")] = 64,
    cached_tokens: Annotated[int, typer.Option(min=16, help="Most tokens in the cache; bounds its memory.")] = 36_864,
    waiting: Annotated[int, typer.Option(min=1, help="Most answers that wait; more requests get 429.")] = 256,
    store: StoreDir = DEFAULT_STORE,
) -> None:
    """Serve a model to OpenAI's clients (POST /v1/chat/completions); an alias is followed without a failed request."""
    from talaria.serving.api.server import serve as work
    from talaria.serving.decoding.engine import Limits
    from talaria.serving.decoding.loaded_model import ServedSource
    from talaria.tracking.mlflow_client import tracking_uri

    source = ServedSource(model, tracking_uri(store) if model.startswith("models:") else None)
    work(source, host=host, port=port, limits=Limits(rows, cached_tokens, waiting), poll=poll, say=say)
