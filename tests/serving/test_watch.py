"""The watch: a bad champion is rolled back with its reason, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from talaria.common.errors import ConfigError, DataError, Unavailable
from talaria.config import load as settings
from talaria.config.schema import Config
from talaria.registry.promotion.champion import champion
from talaria.registry.promotion.promote import promote
from talaria.registry.versions import tags_of
from talaria.serving.client import KEY, ServedModel
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.serving.watch import watch
from talaria.tracking.mlflow_client import connect

from tests.serving.running_server import Running, serving


@pytest.fixture
def running(model: str, uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """Version 2, the good one, is the first champion, and is served."""
    monkeypatch.delenv(KEY, raising=False)
    connect(uri).set_registered_model_alias(model, "champion", "2")
    with serving(ServedSource(f"models:/{model}@champion", uri)) as running:
        yield running


@pytest.fixture
def config(running: Running, model: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The configuration `watched`, with a task of one prompt, which version 2 answers and version 1 does not."""
    item = {"prompt": "123456 Say green", "expected": "green!"}
    (tmp_path / "colours.jsonl").write_text(json.dumps(item) + "\n")
    tree = {
        "name": "watched",
        "registry": {"model": model},
        "serving": {"url": running.url, "swap_seconds": 0},
        "evaluate": {"tasks": [{"name": "colours", "file": str(tmp_path / "colours.jsonl")}]},
        "watch": {"sample": 8, "margin": 0.2},
    }
    (tmp_path / "watched.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setenv("TALARIA_CONFIGS", str(tmp_path))
    monkeypatch.setenv("TALARIA_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return settings.load(tmp_path / "watched.yaml")


def test_a_bad_promotion_is_rolled_back_within_one_run(
    dags: dict[str, Any], running: Running, config: Config, model: str, uri: str
) -> None:
    client = connect(uri)
    assert dags["watch-champion"].test().state == "success"  # all configurations with serving.url
    good = tags_of(client.get_model_version(model, "2"))
    assert float(good["talaria.watch.score"]) == 1.0
    promote(model, 1, uri=uri, by="somebody in a hurry")
    assert running.follower.look()

    run = dags["watch-champion"].test(run_conf={"config": "watched"})

    assert run.state == "success"
    assert champion(model, uri=uri)["version"] == 2
    tags = tags_of(client.get_model_version(model, "1"))
    assert (tags["talaria.rolled_back_by"], tags["talaria.rolled_back_to"]) == ("watch-champion", "2")
    assert "scores 0.000 on 1 prompts of colours, beside 1.000" in tags["talaria.rolled_back_reason"]
    assert "of version 2" in tags["talaria.rolled_back_reason"]
    scores = [point.value for point in client.get_metric_history(client.get_model_version(model, "1").run_id, "watch_score")]
    assert {0.0, 1.0} <= set(scores)
    assert running.follower.look()
    again = watch(config, uri=uri)
    assert (again["version"], again["rolled_back_to"]) == (2, None)
    assert "talaria.watch.restored_from" not in tags_of(client.get_model_version(model, "2"))


def test_a_version_that_is_not_served_yet_is_waited_for(running: Running, config: Config, model: str, uri: str) -> None:
    promote(model, 1, uri=uri, by="somebody")
    with pytest.raises(Unavailable, match=r"version 1 of .* is not served, but 2"):
        watch(config, uri=uri)
    assert champion(model, uri=uri)["version"] == 1


def test_a_server_that_is_away_or_busy_costs_no_champion(
    running: Running, config: Config, model: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(config, uri=uri)
    away = settings.override(config.model_dump(mode="json"), ["serving.url=http://127.0.0.1:9"], "test")
    with pytest.raises(Unavailable, match="does not answer"):
        watch(away, uri=uri)

    def busy(*args: Any) -> Any:
        raise Unavailable("busy")

    monkeypatch.setattr(ServedModel, "message", busy)
    with pytest.raises(Unavailable, match="busy"):
        watch(config, uri=uri)
    assert champion(model, uri=uri)["version"] == 2


def test_going_back_stops_where_the_version_is_not_the_cause(
    running: Running, config: Config, model: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> Any:
        return {"content": "?"}

    watch(config, uri=uri)
    with monkeypatch.context() as patched:
        patched.setattr(ServedModel, "message", broken)
        with pytest.raises(DataError, match="first champion, so there is none to go back to"):
            watch(config, uri=uri)
        promote(model, 1, uri=uri, by="somebody")
        running.follower.look()
        assert watch(config, uri=uri, request="one")["rolled_back_to"] == 2
        running.follower.look()
        with pytest.raises(DataError, match="the cause is not the version"):
            watch(config, uri=uri, request="two")
    assert champion(model, uri=uri)["version"] == 2


def test_what_cannot_be_watched_is_told(running: Running, config: Config, uri: str) -> None:
    tree = config.model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"needs evaluate\.tasks"):
        watch(settings.override(tree, ["evaluate.tasks=[]"], "test"), uri=uri)
    with pytest.raises(ConfigError, match=r"needs serving\.url"):
        watch(settings.override(tree, ["serving.url=null"], "test"), uri=uri)
