"""The commands that serve a model, and that read what people said of its answers."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from talaria.cli.app import DEFAULT_STORE, AsJson, OutputPath, StoreDir, app, finish, say
from talaria.common.errors import UserError

feedback_app = typer.Typer(no_args_is_help=True, help="What people said of a served model's answers.")
app.add_typer(feedback_app, name="feedback")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/VERSION, or a model folder.")],
    host: Annotated[str, typer.Option(help="Address; beyond loopback, TALARIA_SERVE_API_KEY must be set.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")] = 8000,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the alias.")] = 10.0,
    rows: Annotated[int, typer.Option(min=1, help="Most answers at the same time.")] = 64,
    cached_tokens: Annotated[int, typer.Option(min=16, help="Most tokens in the cache; bounds its memory.")] = 36_864,
    waiting: Annotated[int, typer.Option(min=1, help="Most answers that wait; more requests get 429.")] = 256,
    traces: Annotated[
        str | None, typer.Option(metavar="EXPERIMENT", help="Keep requests and feedback as traces in this experiment of MLflow.")
    ] = None,
    store: StoreDir = DEFAULT_STORE,
) -> None:
    """Serve a model to OpenAI's clients (POST /v1/chat/completions); an alias is followed without a failed request."""
    from talaria.serving.api.server import serve as work
    from talaria.serving.decoding.engine import Limits
    from talaria.serving.decoding.loaded_model import ServedSource
    from talaria.tracking.mlflow_client import existing_uri, tracking_uri

    registered = model.startswith("models:")
    source = ServedSource(model, existing_uri(store) if registered else tracking_uri(store) if traces else None)
    work(source, host=host, port=port, limits=Limits(rows, cached_tokens, waiting), poll=poll, traces=traces, say=say)


@feedback_app.command("export")
def feedback_export(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="As given to `talaria serve --traces`.")],
    output: OutputPath,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Write the answers that people liked or corrected as a JSONL file to train on."""
    from talaria.common.files import write_atomically
    from talaria.serving.feedback.export import liked_rows
    from talaria.tracking.mlflow_client import existing_uri

    rows, counts = liked_rows(existing_uri(store), experiment)
    if not rows:
        raise UserError(f"{experiment}: nothing to export, no answer was liked or corrected ({counts or 'nobody judged one'}).")
    write_atomically(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    finish({"rows": len(rows), **counts}, as_json)
