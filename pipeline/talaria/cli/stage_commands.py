"""The commands that go from a data set to a trained model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

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
    progress,
    say,
)
from talaria.common.errors import Unavailable, UserError


@app.command()
def run(
    config: ConfigFile,
    set_: Overrides = [],
    store: StoreDir = DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", help="Make every stage again, even where its output exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run every stage, from the data set to the promoted model; existing outputs are reused."""
    from talaria.cli.training_progress import TrainingProgress
    from talaria.launch import stage as launch
    from talaria.store.store import Store
    from talaria.workflow.run_all import run_all

    def train(*args: Any) -> dict[str, Any]:
        with TrainingProgress() as shown:
            return launch.run(*args, on_line=shown.on_line, on_look=shown.on_look)

    facts = run_all(load(config, set_), Store(store), force=force, on_line=say, train=train)
    if as_json:
        finish(facts, as_json)
    else:
        _show_result(facts)


def _show_result(facts: Mapping[str, Any]) -> None:
    """Print the scores beside the base model's, and what became of the model: progress has said the rest."""
    from talaria.common.printable import printable
    from talaria.evaluation.scores import scores

    for name, base, tuned in [("", "base", "tuned"), *scores(facts["evaluate"])]:
        print(f"{printable(name):20}  {base:>7}  {tuned:>7}".rstrip())
    model, promoted = facts["register"]["model"], facts["promote"]
    version = promoted["version"]
    refused = "waits for approval" if promoted.get("waits") else "not promoted"
    print(f"Model {model} version {version}, {'alias champion' if promoted['champion'] == version else refused}")
    print(facts["register"]["model_url"] or f"talaria chat models:/{model}/{version}")


@app.command()
def plan(config: ConfigFile, set_: Overrides = [], store: StoreDir = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say what `talaria run` would reuse, make, take and cost; exits 2 where it is certain to fail."""
    from talaria.common.printable import printable
    from talaria.store.store import Store
    from talaria.tracking.mlflow_client import tracking_uri
    from talaria.workflow.forecast.forecast import forecast, refuse
    from talaria.workflow.forecast.lines import lines

    settings = load(config, set_)
    facts = forecast(settings, Store(store), uri=tracking_uri(store))
    if as_json:
        print(json.dumps(facts))
    else:
        for line in lines(facts):
            print(printable(line))
    refuse(facts)


@app.command()
def sweep(
    config: ConfigFile,
    set_: Overrides = [],
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Train with several settings (section `sweep`), and register and promote the best; what is there is not trained again."""
    from talaria.cli.training_progress import TrainingProgress
    from talaria.launch import stage as launch
    from talaria.store.store import Store
    from talaria.sweep.run import sweep as work

    def train(*args: Any, on_look: Callable[[Path], None], **options: Any) -> dict[str, Any]:
        with TrainingProgress() as shown:

            def look(folder: Path) -> None:
                shown.on_look(folder)
                on_look(folder)

            return launch.run(*args, on_line=shown.on_line, on_look=look, **options)

    finish(work(load(config, set_), Store(store), on_line=say, train=train), as_json)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="A stage of pipeline/talaria/stages/table.py.")],
    config: ConfigFile,
    inputs: Annotated[str, typer.Option("--inputs", help='JSON {"stage": {"path": ..., "key": ...}} of its inputs.')] = "{}",
    set_: Overrides = [],
    store: StoreDir = DEFAULT_STORE,
    force: bool = False,
    result: Annotated[Path | None, typer.Option(help="Write the output's description here instead of to stdout.")] = None,
) -> None:
    """Run one stage in the store; the Airflow tasks that want a process of their own use this.

    Exits with 75 (EX_TEMPFAIL) if an external service does not answer, so that the task is retried.
    """
    from talaria.stages.run import run_stage
    from talaria.stages.table import STAGES
    from talaria.store.store import Output, Store
    from talaria.workflow import convert_parts

    if name not in STAGES:
        raise UserError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}.")
    upstream = {key: Output.from_json(value) for key, value in json.loads(inputs).items()}
    try:
        if name == "convert":
            output = convert_parts.join(load(config, set_), Store(store), upstream, force=force)
        else:
            output = run_stage(name, load(config, set_), Store(store), upstream, force=force)
    except Unavailable as error:
        say(f"talaria: {error}")
        raise typer.Exit(os.EX_TEMPFAIL) from None
    if result is not None:
        result.write_text(json.dumps(output.as_json()))
    else:
        print(json.dumps(output.as_json()))


@app.command()
def download(config: ConfigFile, output: OutputPath, set_: Overrides = [], as_json: AsJson = False) -> None:
    """Fetch the data set into a folder."""
    from talaria.data.download import download as work

    finish(work(load(config, set_), output), as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Option("--input", help="Source file, or a folder of them.")],
    output: OutputPath,
    config: MaybeConfig = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Turn chat data of any shape into a messages parquet."""
    from talaria.data.convert import convert as work
    from talaria.data.convert import convert_sources

    chosen = load(config, set_)
    with progress("convert", "rows") as rows:
        if chosen.sources:
            facts = convert_sources(source, output, chosen.sources, rows)
        else:
            facts = work(source, output, chosen.convert, rows)
    finish(facts, as_json)


@app.command()
def check(
    source: Annotated[Path, typer.Argument(metavar="DATA", help="Data file, a folder of them, or a configuration (.yaml).")],
    config: MaybeConfig = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", help="Tokenizer folder or hub name, to render with.")] = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Say in seconds what of a data set is trained, masked, mapped and dropped; exits 2 where a run would stop."""
    from talaria.common.printable import printable
    from talaria.workflow import check_data

    named = config is None and source.suffix in (".yaml", ".yml")  # the configuration says where the data is
    facts = check_data.check(None if named else source, load(source if named else config, set_), tokenizer)
    if as_json:
        print(json.dumps(facts))
    else:
        for line in check_data.lines(facts):
            print(printable(line, keep="\n\t"))
    if facts["stops"]:
        raise UserError(facts["stops"])


@app.command()
def tokenize(
    source: Annotated[Path, typer.Option("--input", help="A messages parquet.")],
    tokenizer: Annotated[str, typer.Option("--tokenizer", help="Tokenizer folder, or its name on the hub.")],
    output: OutputPath,
    config: MaybeConfig = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Turn a messages parquet into token ids and loss masks, as Arrow shards."""
    from talaria.tokenization import fastokens_backend as fast
    from talaria.tokenization.comparison import reloaded
    from talaria.tokenization.tokenizer_folder import CHATML

    chosen = load(config, set_).tokenize
    fast.prepare()
    if chosen.template == CHATML:
        if chosen.backend != "tokenizers":
            fast.begin(Path(tokenizer, "tokenizer.json"))
        reloaded.begin()
    else:
        reloaded.give_up()
    from talaria.tokenization.stage import tokenize as work

    with progress("tokenize", "rows") as rows:
        facts = work(source, tokenizer, output, chosen, rows)
    finish(facts, as_json)


@app.command()
def train(
    config: ConfigFile,
    tokens: Annotated[Path, typer.Option(help="Folder that `talaria tokenize` made.")],
    model: Annotated[str, typer.Option(help="Folder of the base model, or its name on the hub.")],
    output: OutputPath,
    num_processes: Annotated[int | None, typer.Option(help="Ranks on this machine; overrides train.num_processes.")] = None,
    machine_rank: Annotated[int, typer.Option(help="Which of train.num_machines this one is, from 0.")] = 0,
    rendezvous: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="Where machine 0 listens.")] = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model; run it again with the same output to resume."""
    from talaria.cli.training_progress import TrainingProgress
    from talaria.launch.accelerate_command import Machine
    from talaria.launch.stage import launch

    machine = Machine(machine_rank, rendezvous)
    if num_processes is not None:
        set_ = [*set_, f"train.num_processes={num_processes}"]
    with TrainingProgress() as shown:
        facts = launch(load(config, set_), tokens, model, output, on_line=shown.on_line, on_look=shown.on_look, machine=machine)
    finish(facts, as_json)


@app.command()
def inspect(
    tokens: Annotated[Path, typer.Argument(help="Folder that `talaria tokenize` made.")],
    row: Annotated[int | None, typer.Option(help="Row of the messages parquet; absent: the first.")] = None,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    html: Annotated[Path | None, typer.Option(help="Write a page of samples instead.")] = None,
) -> None:
    """Show what the model sees and which tokens count in the loss."""
    from talaria.tokenization import inspection as page

    if html is not None:
        page.write_html(tokens, html)
        say(f"wrote {html}")
    else:
        page.show(tokens, row, split)


@app.command("config")
def list_settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As the table of docs/configuration.md.")] = False,
) -> None:
    """List every setting with its default and meaning."""
    from talaria.config import load as settings

    for name, default, meaning in settings.documentation():
        shown = "–" if default is None else str(default)
        if markdown:
            escaped = meaning.replace("|", "\\|")
            print(f"| `{name}` | `{shown}` | {escaped} |")
        else:
            print(f"{name:36} {shown:24} {meaning}")
