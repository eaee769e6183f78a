"""A served model that answers "Say green" with "green!", made once a session."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from talaria.registry.register import register
from talaria.registry.versions import drop_tags
from talaria.serving.decoding.engine import Limits
from talaria.serving.decoding.loaded_model import ServedSource
from talaria.tracking.mlflow_client import connect, tracking_uri

from tests.serving.running_server import Running, serving
from tests.support import tiny_pipeline


@pytest.fixture(scope="session")
def folders(shared_store: Path) -> dict[str, Path]:
    return {name: output.path for name, output in tiny_pipeline.trained(shared_store).items()}


@pytest.fixture(scope="session")
def served(folders: dict[str, Path]) -> Iterator[Running]:
    """The folder `model` of a training; the tests that use it may run in any order."""
    with serving(ServedSource(str(folders["train"] / "model")), limits=Limits(cached_tokens=2000)) as running:
        yield running


@pytest.fixture(scope="session")
def uri(shared_store: Path) -> str:
    return tracking_uri(shared_store)


@pytest.fixture(scope="session")
def registered(folders: dict[str, Path], uri: str) -> dict[str, Any]:
    """A model whose second version answers well and whose first, after twenty steps of training, does not."""
    settings = tiny_pipeline.config(registry={"model": f"served-{uuid.uuid4().hex[:8]}"})
    facts = register(settings, folders, uri=uri)
    assert [(entry["version"], entry["step"]) for entry in facts["versions"]] == [(1, 20), (2, 120)]
    return facts


@pytest.fixture
def model(registered: dict[str, Any], uri: str) -> str:
    """Its name; version 1 is the champion and no version has a history."""
    client = connect(uri)
    for number in ("1", "2"):
        history = ("talaria.rolled_back", "talaria.previous_champion", "talaria.gate", "talaria.watch")
        drop_tags(client, registered["model"], number, history)
    client.set_registered_model_alias(registered["model"], "champion", "1")
    return str(registered["model"])
