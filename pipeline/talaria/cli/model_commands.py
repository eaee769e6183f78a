"""The commands for trained models, the registry and the store."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from talaria.cli.app import (
    DEFAULT_STORE,
    AsJson,
    ConfigFile,
    MaybeConfig,
    OutputPath,
    Overrides,
    StoreDir,
    app,
    finish,
    load,
    say,
)
from talaria.common.errors import UserError
from talaria.common.printable import printable

if TYPE_CHECKING:
    from talaria.store.store import Store

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the registered model.")]
store_app = typer.Typer(no_args_is_help=True, help="Look at the store, and free space in it.")
app.add_typer(store_app, name="store")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option("--model", help="Folder of the tuned model.")],
    tokens: Annotated[Path, typer.Option("--tokens", help="Folder with a held-out split, made by `talaria tokenize`.")],
    output: OutputPath,
    base: Annotated[Path | None, typer.Option("--base", help="Folder of the base model, to compare with.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="The messages parquet it was trained on, for sources.")] = None,
    config: MaybeConfig = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Measure held-out loss and answers of a model, and of its base model."""
    from talaria.evaluation.stage import evaluate as work

    finish(work(load(config, set_), model=model, tokens=tokens, base=base, output=output, data=data), as_json)


@app.command()
def register(
    config: ConfigFile,
    train: Annotated[Path, typer.Option(help="Training folder.")],
    tokens: Annotated[Path, typer.Option(help="Tokens folder it was trained on.")],
    evaluation: Annotated[Path, typer.Option(help="Folder that `talaria evaluate` made.")],
    set_: Overrides = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Register the exported models of a training folder as versions."""
    from talaria.registry.register import register as work
    from talaria.tracking.mlflow_client import tracking_uri

    inputs = {"train": train, "tokenize": tokens, "evaluate": evaluation}
    finish(work(load(config, set_), inputs, uri=tracking_uri(store)), as_json)


@app.command()
def promote(
    model: ModelName,
    version: Annotated[int | None, typer.Argument(help="Version; absent: the newest candidate.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file or name, for its section promote.")] = None,
    set_: Overrides = [],
    margin: Annotated[float | None, typer.Option(help="promote.margin: how much lower its held-out loss must be.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Promote it whatever the gate says; your name is recorded.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the gate would decide; no alias moves.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the answer there as JSON, too.")] = None,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion if it beats the base model and the champion beyond noise."""
    from talaria.common.files import write_atomically
    from talaria.registry.promotion.promote import preview
    from talaria.registry.promotion.promote import promote as work
    from talaria.tracking.mlflow_client import existing_uri

    if anyway and dry_run:
        raise UserError("--anyway and --dry-run exclude each other: the gate's word does not count with the first.")
    overrides = set_ if margin is None else [*set_, f"promote.margin={margin}"]
    settings, uri = load(config, overrides), existing_uri(store)
    if dry_run:
        shown = settings.evaluate if settings.promote.approval else None  # a person will be asked
        answer = preview(model, version, settings=settings.promote, evaluate=shown, uri=uri)
    else:
        answer = work(model, version, settings=settings.promote, uri=uri, by=getpass.getuser() if anyway else None)
    if output is not None:
        write_atomically(output, json.dumps(answer))
    finish(answer, as_json)


@app.command()
def rollback(
    model: ModelName,
    reason: Annotated[str, typer.Option(help="Why; it is written on the version.")],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Make the previous champion the champion again."""
    from talaria.registry.promotion.rollback import rollback as work
    from talaria.tracking.mlflow_client import existing_uri

    finish(work(model, reason=reason, who=getpass.getuser(), uri=existing_uri(store)), as_json)


@app.command()
def cost(
    days: Annotated[float, typer.Option(min=0, max=100_000, help="Trainings that began in the last so many days.")] = 30.0,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Sum up GPU-hours and money by registered model; registry.gpu_hour_price has the price."""
    from dataclasses import asdict

    from talaria.tracking.mlflow_client import existing_uri
    from talaria.tracking.spending import spending

    found = {name: asdict(spent) for name, spent in spending(existing_uri(store), days=days).items()}
    if as_json:
        finish(found, as_json)
        return
    for name, spent in sorted(found.items()):
        unpriced = f", {spent['unpriced']:.2f} of them without a price" if spent["unpriced"] else ""
        hours = f"{spent['gpu_hours']:.2f} GPU-hours{unpriced}"
        print(f"{printable(name)}: {spent['trainings']} trainings, {hours}, cost {spent['cost']:.2f}")


@app.command()
def prune(
    model: ModelName,
    keep: Annotated[int, typer.Option(min=1, help="Newest versions to keep.")],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Delete old versions of a model and their files, except those with an alias and the previous champion."""
    from talaria.registry.versions import prune as work
    from talaria.tracking.mlflow_client import existing_uri

    finish(work(model, keep, uri=existing_uri(store)), as_json)


@app.command()
def publish(
    version: Annotated[str, typer.Argument(metavar="VERSION", help="models:/NAME@champion or models:/NAME/VERSION.")],
    to: Annotated[str, typer.Option("--to", help="hub:ORG/NAME, a repository on the Hugging Face hub, or folder:PATH.")],
    public: Annotated[bool, typer.Option("--public", help="Anybody may read the repository; absent: it is private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="As the hub writes it; absent: registry.license, or the base model's.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", metavar="ORG/NAME", help="The base on the hub, if a folder was trained from.")
    ] = None,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Publish a version for others: weights, tokenizer, chat template and model card."""
    from talaria.publishing.destination import LocalFolder, destination, hub_id
    from talaria.publishing.licences import licence_id
    from talaria.publishing.publish import publish as work
    from talaria.tracking.mlflow_client import existing_uri

    target = destination(to)
    if public and isinstance(target, LocalFolder):
        raise UserError("--public is about a repository on the hub; a folder has the rights that you give it.")
    stated = {
        "license": licence_id(license, "--license") if license else None,
        "base_model": hub_id(base_model, "--base-model") if base_model else None,
    }
    finish(work(version, target, uri=existing_uri(store), public=public, on_line=say, **stated), as_json)


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Model folder, or models:/NAME@champion.")],
    prompt: Annotated[str | None, typer.Option(help="Answer this and exit.")] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 512,
    store: StoreDir = DEFAULT_STORE,
) -> None:
    """Chat with a model."""
    from talaria.cli.chat import chat as work
    from talaria.tracking.mlflow_client import existing_uri

    uri = existing_uri(store) if model.startswith("models:") else None
    work(model, prompt=prompt, system=system, max_new_tokens=max_new_tokens, uri=uri)


@app.command()
def report(
    data: Annotated[Path, typer.Option("--data", help="Folder of the stage convert (holds messages.parquet).")],
    tokens: Annotated[Path, typer.Option("--tokens", help="Tokens folder.")],
    output: OutputPath,
    as_json: AsJson = False,
) -> None:
    """Write the data report: lengths, sources, drops, duplicates, odd rows."""
    from talaria.report.stage import report as work

    finish(work(data, tokens, output), as_json)


def _existing(folder: Path) -> Store:
    from talaria.store.store import Store

    if not folder.is_dir():
        raise UserError(f"{folder}: there is no store; name it by --store or TALARIA_STORE. `talaria run CONFIG` makes one.")
    return Store(folder)


@store_app.command("ls")
def store_ls(store: StoreDir = DEFAULT_STORE) -> None:
    """List every output and working folder, with its size and the days since it was last used."""
    from talaria.store.prune import entries

    for entry in entries(_existing(store)):
        state = "" if entry.finished else "  unfinished"
        print(f"{entry.stage:12} {entry.bytes / 1e6:12.1f} MB {entry.idle_days:7.1f} d  {entry.path}{state}")


@store_app.command("prune")
def store_prune(
    days: Annotated[float, typer.Option(min=0, help="Remove what nothing has used for so many days.")] = 30.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="Remove their copies on TALARIA_REMOTE too.")] = False,
    store: StoreDir = DEFAULT_STORE,
) -> None:
    """Delete outputs to free space. What runs need stays, and registered models, because the registry has its own hard links."""
    from talaria.store.prune import Entry, prune

    def on_kept(entry: Entry, why: str) -> None:
        say(f"kept {entry.path}: {why}")

    gone = prune(_existing(store), days, dry_run=dry_run, remote=remote, on_kept=on_kept)
    for entry in gone:
        print(f"{'would remove' if dry_run else 'removed'} {entry.path}")
    say(f"{sum(entry.bytes for entry in gone) / 1e6:.1f} MB in {len(gone)} folders")


@store_app.command("verify")
def store_verify(
    repair: Annotated[
        bool, typer.Option("--repair", help="Set damaged outputs aside, so that the next run makes them again.")
    ] = False,
    store: StoreDir = DEFAULT_STORE,
) -> None:
    """Check every file of every output against the digest in its manifest; exits 1 where one is damaged and not repaired."""
    from talaria.store.verify import verify

    damaged = 0
    for damage in verify(_existing(store), repair=repair):
        damaged += 1
        print(f"{damage.path}: {damage.what}" + (f"; now {damage.aside}" if damage.aside else ""))
    say(f"{damaged} outputs are damaged.")
    if damaged and not repair:
        say("--repair sets them aside, and the next run makes them again.")
        raise typer.Exit(1)
