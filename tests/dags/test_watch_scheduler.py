"""The watch through the services that `make up` starts: after a bad promotion, one run, and the good model is served again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml
from talaria.devstack.follow_run import failure
from talaria.registry.promotion.champion import champion
from talaria.registry.promotion.promote import promote
from talaria.registry.register import register
from talaria.registry.versions import tags_of
from talaria.tracking.mlflow_client import connect

from tests.support import tiny_pipeline
from tests.support.airflow_env import Stack, running_stack
from tests.support.process_trees import eventually
from tests.support.server_process import ServerProcess

pytestmark = [pytest.mark.timeout(1800), pytest.mark.stack]
until = partial(eventually, within=600, every=0.3)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    return ServerProcess(tmp_path_factory.mktemp("serve") / "log")


@pytest.fixture(scope="module")
def stack(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """With the configuration `watched`, whose model is served at `server`, and a task that only a good version passes."""
    folder = tmp_path_factory.mktemp("watching")
    (folder / "colours.jsonl").write_text(json.dumps({"prompt": "123456 Say green", "expected": "green!"}))
    tree = {
        "registry": {"model": "watched"},
        "serving": {"url": server.url, "swap_seconds": 120},
        "evaluate": {"tasks": [{"name": "colours", "file": str(folder / "colours.jsonl")}]},
        "watch": {"sample": 8, "margin": 0.2},
    }
    (folder / "configs").mkdir()
    (folder / "configs" / "watched.yaml").write_text(yaml.safe_dump(tree))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TALARIA_CONFIGS", str(folder / "configs"))
        with running_stack(folder / "talaria") as stack:
            until(lambda: stack.api.has_dag("watch-champion"))
            yield stack


def watched(stack: Stack, run_id: str) -> None:
    """Trigger one run and wait for its end."""
    stack.api.trigger("watch-champion", run_id, {"config": "watched"})
    until(lambda: stack.api.run("watch-champion", run_id)["state"] in ("success", "failed"))
    state = stack.api.run("watch-champion", run_id)["state"]
    assert state == "success", failure(stack.api, "watch-champion", run_id)


def test_a_bad_champion_is_rolled_back_and_the_good_one_served_again(
    stack: Stack, server: ServerProcess, shared_store: Path
) -> None:
    uri = stack.ports.mlflow_url
    folders = {name: output.path for name, output in tiny_pipeline.trained(shared_store).items()}
    facts = register(tiny_pipeline.config(registry={"model": "watched"}), folders, uri=uri)
    bad, good = (entry["version"] for entry in facts["versions"])
    promote("watched", good, uri=uri, by="tester")
    command = [
        sys.executable,
        "-m",
        "talaria.cli",
        "serve",
        "models:/watched@champion",
        "--poll",
        "1",
        "--port",
        str(server.port),
    ]
    server.run(command, "/health", os.environ | {"MLFLOW_TRACKING_URI": uri})
    try:
        stack.api.unpause("watch-champion")
        watched(stack, "good")
        promote("watched", bad, uri=uri, by="somebody in a hurry")
        watched(stack, "bad")
        assert champion("watched", uri=uri)["version"] == good
        until(lambda: httpx.get(f"{server.url}/health").json()["version"] == good, within=60)
    finally:
        server.stop()
    client = connect(uri)
    tags = tags_of(client.get_model_version("watched", str(bad)))
    assert tags["talaria.rolled_back_by"] == "watch-champion"
    assert "scores 0.000 on 1 prompts of colours, beside 1.000" in tags["talaria.rolled_back_reason"]
