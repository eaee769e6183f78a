"""The searches that docs/registry.md shows find what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from talaria.registry.promotion.promote import promote
from talaria.registry.register import register
from talaria.tracking.mlflow_client import connect, tracking_uri

from tests.support import tiny_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "registry.md").read_text()
EXAMPLES = re.findall(r"```python\n(# .*?)```", PAGE.partition("## Searching")[2].partition("## Functions")[0], re.DOTALL)


@pytest.fixture(scope="module")
def client(tmp_path_factory, outputs):
    """MLflow with the models of the page: `tiny`, registered and judged by an Airflow run."""
    uri = tracking_uri(tmp_path_factory.mktemp("searches"))
    config = tiny_pipeline.config(registry={"model": "tiny"}, download={"source": "hub"})
    context = {"dag_id": "sft", "run_id": "manual__1"}
    facts = register(config, {name: output.path for name, output in outputs.items()}, uri=uri, context=context)
    promote("tiny", facts["candidate"], uri=uri)
    promote("tiny", 1, uri=uri)
    return connect(uri)


def test_the_page_has_examples():
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("code", EXAMPLES, ids=[code.splitlines()[0].removeprefix("# ")[:40] for code in EXAMPLES])
def test_an_example_search_finds_something(client, code):
    names = {"client": client}
    exec(code, names)
    found = names["found"]
    assert found
    assert isinstance(found, dict) or all(isinstance(one, ModelVersion | LoggedModel | Run) for one in found)


def test_the_best_come_first(client):
    names = {"client": client}
    exec(EXAMPLES[0], names)
    assert [version.version for version in names["found"]] == [2]
