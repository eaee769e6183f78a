"""`talaria compare-answers`: several models, the same prompts, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from talaria.cli.app import DEFAULT_STORE, AsJson, Overrides, StoreDir, app, load, say
from talaria.common.errors import UserError
from talaria.common.printable import printable


@app.command("compare-answers")
def compare_answers(
    models: Annotated[list[str], typer.Argument(metavar="A B", help="Two models or more: folders, models:/NAME@ALIAS.")],
    prompts: Annotated[Path | None, typer.Option("--prompts", help="JSONL file of prompts, as a task has them.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML file or name, for evaluate.tasks.")] = None,
    set_: Overrides = [],
    output: Annotated[Path | None, typer.Option("--output", help="Folder for answers.html and answers.json.")] = None,
    same: Annotated[bool, typer.Option("--all", help="Show prompts with equal answers, too.")] = False,
    store: StoreDir = DEFAULT_STORE,
    as_json: AsJson = False,
) -> None:
    """Let models answer the same prompts, and show where they differ."""
    from talaria.cli.chat import resolve_model
    from talaria.common.output_folder import replacing
    from talaria.config.evaluation_settings import TaskSettings
    from talaria.evaluation.compare.page import page
    from talaria.evaluation.compare.rows import ask, totals
    from talaria.tracking.mlflow_client import existing_uri

    if len(models) < 2 or len(set(models)) < len(models):
        raise UserError("compare-answers needs two different models or more, for example models:/tiny@champion models:/tiny/7.")
    settings = load(config, set_).evaluate
    if prompts is not None:
        settings = settings.model_copy(update={"tasks": [TaskSettings(name=_name_of(prompts), file=prompts.absolute())]})
    folders = {name: resolve_model(name, uri=existing_uri(store) if name.startswith("models:") else None) for name in models}
    rows = ask(folders, settings)
    if output is not None:
        with replacing(output, "compare-answers") as work:
            (work.path / "answers.html").write_text(page(rows, f"Answers of {', '.join(models)}"), encoding="utf-8")
            (work.path / "answers.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
            work.describe({"models": models, "scores": totals(rows)})
        say(f"wrote {output / 'answers.html'}")
    if as_json:
        print(json.dumps({"scores": totals(rows), "rows": rows}))
    else:
        _show(rows, models, same)


def _name_of(prompts: Path) -> str:
    kept = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in prompts.stem).strip("-")
    return kept or "prompts"


def _show(rows: Sequence[dict[str, Any]], models: Sequence[str], same: bool) -> None:
    """Print prompts with their answers, what differs from the first model's marked, and the scores."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from talaria.evaluation.compare.rows import differs, marked, totals

    console = Console(highlight=False)
    shown = [row for row in rows if same or differs(row)]
    for row in shown:
        title = printable(f"{row['task']} {row['item']}")
        grid = Table("", *map(printable, models), title=title, title_justify="left", show_lines=True)
        first = row["answers"][models[0]]["answer"]
        cells = []
        for name in models:
            one = row["answers"][name]
            text = Text()
            for piece, new in marked(first, one["answer"]):
                text.append(printable(piece, keep="\n\t"), style="bold reverse" if new else "")
            text.append(f"\n{'right' if one['right'] else 'wrong'} {printable(one['why'])}".rstrip(), style="dim")
            cells.append(text)
        grid.add_row(Text(printable(row["prompt"], keep="\n\t")), *cells)
        console.print(grid)
    scores = Table("task", *map(printable, models))
    for task, means in totals(rows).items():
        scores.add_row(printable(task), *(f"{means[name]:.3f}" for name in models))
    console.print(scores)
    console.print(
        f"{len(shown)} of {len(rows)} prompts shown" + ("." if same else "; --all shows those with equal answers, too.")
    )
