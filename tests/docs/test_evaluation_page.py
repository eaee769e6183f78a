"""docs/evaluation.md does what it says: its files are read, and its commands run, in the order of the page."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from talaria.cli import app, compare_commands, model_commands  # noqa: F401  (they add their commands)
from talaria.config.load import load
from talaria.registry.promotion.promote import promote
from talaria.registry.register import register
from talaria.tracking.mlflow_client import connect, tracking_uri
from typer.testing import CliRunner

from tests.support import tiny_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory, shared_store) -> Path:
    """A folder with the files that the page speaks of, and a registered model `small`."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "basics.jsonl").write_text(blocks("json")[0])
    for text in blocks("yaml"):
        (folder / f"{text.splitlines()[0].removeprefix('name: ')}.yaml").write_text(text)
    outputs = tiny_pipeline.trained(shared_store)
    made = {name: output.path for name, output in outputs.items()}
    links = {"model": made["train"] / "model", "base": made["base"], "tokens": made["tokenize"]}
    links["messages.parquet"] = made["convert"] / "messages.parquet"
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return folder


@pytest.fixture
def run(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("TALARIA_STORE", str(place / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def call(command: str, *more: str) -> str:
        lines = [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]
        (line,) = (line for line in lines if line.startswith(f"talaria {command}"))
        done = CliRunner().invoke(app.app, [*shlex.split(line)[1:], *more], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return call


def test_every_configuration_of_the_page_is_valid(place, monkeypatch):
    monkeypatch.chdir(place)
    assert [load(path).name for path in sorted(place.glob("*.yaml"))] == ["benchmarked", "guarded", "judged", "my-model"]


def test_the_commands_of_the_page(place, run, shared_store):
    facts = json.loads(run("evaluate", "--json"))
    assert facts["tasks"]["basics"]["tuned"] >= 0.25  # "Say green", for which it was trained
    outputs = tiny_pipeline.trained(shared_store)
    config = load("guarded.yaml", ["registry.model=small", "base.source=random", "download.source=sample"])
    inputs = {name: output.path for name, output in outputs.items()} | {"evaluate": place / "evaluation"}
    uri = tracking_uri(place / "store")
    registered = register(config, inputs, uri=uri)
    assert "\n  Vetoes: task/basics/sums." in run("promote"), "three lines"
    said = run("promote", "--json")
    decided = json.loads(said)
    verdict, numbers, guards = decided["reason"].split("\n")
    assert decided["promoted"] == verdict.startswith("It is better than the base model beyond noise")
    assert "task/basics " in numbers
    assert "; in sum " in numbers
    assert guards.startswith("Vetoes: task/basics/sums.")
    files = {file.path for file in connect(uri).list_artifacts(registered["run_id"], "evaluation")}
    assert files >= {"evaluation/tasks.json", "evaluation/answers.html", "evaluation/items"}
    promote("small", registered["candidate"], uri=uri, by="ann")
    shown = run("compare-answers", "--all")
    assert "Say green" in shown
    assert "prompts shown" in shown
    page = (place / "compared" / "answers.html").read_text()
    assert "<mark>" in page
    assert json.loads((place / "compared" / "answers.json").read_text())[0]["answers"].keys() == {
        "models:/small@champion",
        "base",
    }
