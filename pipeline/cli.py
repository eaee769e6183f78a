"""`talaria`: the pipeline without Airflow, one command for the whole way and one for each stage.

Exit codes: 0 done; 2 bad usage, configuration or input (one line on stderr); 1 anything else.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError

from pipeline import config as settings
from pipeline.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration, for example configs/tiny.yaml.")]
MaybeConfig = Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML configuration; absent: the defaults.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")]
StoreDir = Annotated[Path, typer.Option("--store", envvar="TALARIA_STORE", help="Folder of all stage outputs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object on stdout.")]
OutputPath = Annotated[Path, typer.Option("--output", help="Where the result goes.")]
DEFAULT_STORE = Path(".talaria/store")


def main() -> None:
    """Entry point: runs the command and turns a user's mistake into one line and exit code 2."""
    try:
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        sys.exit(_refuse(str(error)))
    except NoArgsIsHelpError:
        sys.exit(2)  # typer has printed the help
    except ClickException as error:
        context = getattr(error, "ctx", None)
        sys.exit(_refuse(f"{error.format_message()} See `{context.command_path if context else 'talaria'} --help`."))
    except KeyboardInterrupt:
        sys.exit(_refuse("interrupted.", code=130))


def _refuse(sentence: str, code: int = 2) -> int:
    print(f"talaria: {sentence}", file=sys.stderr)
    return code


def say(text: str) -> None:
    """Progress and remarks go to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def finish(facts: dict[str, Any], as_json: bool) -> None:
    """Print a stage's facts: JSON, or a line each."""
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name}: {json.dumps(value) if isinstance(value, dict | list) else value}")


def load(path: Path | None, overrides: list[str]) -> settings.Config:
    """The configuration of a command whose CONFIG may be left out."""
    if path is not None:
        return settings.load(path, overrides)
    return settings.override({"name": "talaria"}, overrides, "command line")


@app.command()
def run(
    config: ConfigFile,
    set_: Overrides = [],
    store: StoreDir = DEFAULT_STORE,
    force: Annotated[bool, typer.Option("--force", help="Make every stage again, even where its output exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run every stage, from the data set to the promoted model; what is there already is reused."""
    from pipeline.stages import run_all
    from pipeline.store import Store

    finish(run_all(settings.load(config, set_), Store(store), force=force, on_line=say), as_json)


@app.command()
def stage(
    name: Annotated[str, typer.Argument(help="A stage of pipeline/stages.py.")],
    config: ConfigFile,
    inputs: Annotated[str, typer.Option("--inputs", help='JSON {"stage": {"path": ..., "key": ...}} of its inputs.')] = "{}",
    set_: Overrides = [],
    store: StoreDir = DEFAULT_STORE,
    force: bool = False,
) -> None:
    """Run one stage in the store; the Airflow tasks that want a process of their own use this."""
    from pipeline.stages import STAGES, run_stage
    from pipeline.store import Output, Store

    if name not in STAGES:
        raise UserError(f"unknown stage {name!r}; the stages are {', '.join(STAGES)}.")
    upstream = {key: Output.from_json(value) for key, value in json.loads(inputs).items()}
    output = run_stage(name, settings.load(config, set_), Store(store), upstream, force=force)
    print(json.dumps(output.as_json()))


@app.command()
def download(config: ConfigFile, output: OutputPath, set_: Overrides = [], as_json: AsJson = False) -> None:
    """Fetch the data set into a folder."""
    from pipeline.data.download import download as work

    finish(work(settings.load(config, set_).download, output), as_json)


@app.command()
def convert(
    source: Annotated[Path, typer.Option("--input", help="Source file, or a folder of them.")],
    output: OutputPath,
    config: MaybeConfig = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Turn a ShareGPT-shaped data set into a messages parquet."""
    from pipeline.data.convert import convert as work

    finish(work(source, output, load(config, set_).convert), as_json)


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
    from pipeline.tokens.encode import tokenize as work

    finish(work(source, tokenizer, output, load(config, set_).tokenize), as_json)


@app.command()
def train(
    config: ConfigFile,
    tokens: Annotated[Path, typer.Option(help="Folder that `talaria tokenize` made.")],
    model: Annotated[str, typer.Option(help="Folder of the base model, or its name on the hub.")],
    output: OutputPath,
    num_processes: Annotated[int | None, typer.Option(help="Ranks on this machine; overrides train.num_processes.")] = None,
    set_: Overrides = [],
    as_json: AsJson = False,
) -> None:
    """Fine-tune; run again with the same output to continue where it stopped."""
    from pipeline.train.launch import launch

    if num_processes is not None:
        set_ = [*set_, f"train.num_processes={num_processes}"]
    finish(launch(settings.load(config, set_), tokens, model, output, on_line=say), as_json)


@app.command()
def inspect(
    tokens: Annotated[Path, typer.Argument(help="Folder that `talaria tokenize` made.")],
    row: Annotated[int | None, typer.Option(help="Row of the messages parquet; absent: the first.")] = None,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    html: Annotated[Path | None, typer.Option(help="Write a page of samples instead.")] = None,
) -> None:
    """Show what the model will see and what counts in the loss."""
    from pipeline.tokens import inspect as page

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
    for name, default, meaning in settings.documentation():
        shown = "–" if default is None else str(default)
        if markdown:
            print(f"| `{name}` | `{shown}` | {meaning} |")
        else:
            print(f"{name:36} {shown:24} {meaning}")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
