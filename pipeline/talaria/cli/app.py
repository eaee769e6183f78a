"""The typer app, the options that commands share, and the exit codes."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError

from talaria import __version__
from talaria.cli.startup import leave
from talaria.common.errors import TrainingStopped, UserError
from talaria.common.files import machine_refusal
from talaria.common.printable import printable

if TYPE_CHECKING:
    from talaria.config.schema import Config

HELP = """The pipeline without Airflow: one command for the whole way and one for each stage.

Exit codes: 0 done; 2 bad usage, configuration or input (one line on stderr); 1 anything else.
"""
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=HELP)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, or the name of a shipped configuration: tiny.")]
MaybeConfig = Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="YAML file or name; absent: the defaults.")]
Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")]
StoreDir = Annotated[Path, typer.Option("--store", envvar="TALARIA_STORE", help="Folder of all stage outputs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object on stdout.")]
OutputPath = Annotated[Path, typer.Option("--output", help="Where the result goes.")]
DEFAULT_STORE = Path(".talaria/store")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"talaria {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")]


@app.callback()
def _options(version: Version = False) -> None:
    pass


def main() -> NoReturn:
    """Run the command of sys.argv; turn a user's mistake into one line and exit code 2."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # unwinds, so that half an output is removed
    try:
        code = app(standalone_mode=False) or 0
    except UserError as error:
        code = _refuse(str(error))
    except TrainingStopped as error:
        code = _refuse(str(error), code=1)
    except NoArgsIsHelpError:
        code = 2  # typer has printed the help
    except ClickException as error:
        context = getattr(error, "ctx", None)
        code = _refuse(f"{error.format_message()} See `{context.command_path if context else 'talaria'} --help`.")
    except KeyboardInterrupt:
        code = _refuse("interrupted.", code=130)
    except (OSError, MemoryError) as error:
        if (sentence := machine_refusal(error)) is None:
            raise
        code = _refuse(sentence)
    leave(code)


def _refuse(sentence: str, code: int = 2) -> int:
    print(f"talaria: {printable(sentence)}", file=sys.stderr)
    return code


def say(text: str) -> None:
    """Print progress or a remark to stderr; stdout is for results."""
    print(printable(text, keep="\n\t"), file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a function to call with (done, total or None): it shows a bar on a terminal, elsewhere a line every ten seconds."""
    last = time.monotonic()

    def line(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"{title}: {done:,}{'' if total is None else f' of {total:,}'} {unit}")

    if not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, description=f"{title}: {done:,} {unit}")


def finish(facts: dict[str, Any], as_json: bool) -> None:
    """Print a stage's facts, as JSON or one line each; further lines of a text are indented."""
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        print(printable(f"{name}: {text}", keep="\n").replace("\n", "\n  "))


def load(path: Path | None, overrides: list[str]) -> Config:
    """Return the configuration of a command, or the defaults if CONFIG is left out."""
    from talaria.config import load as settings
    from talaria.config.folder import find_config

    if path is not None:
        return settings.load(find_config(path), overrides)
    return settings.override({"name": "talaria"}, overrides, "command line")
