"""MLflow's files on object storage: what a server with an s3:// artifact root makes of a registration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from talaria.cli.chat import resolve_model
from talaria.registry.promotion.promote import promote
from talaria.registry.register import register
from talaria.registry.versions import prune
from talaria.tracking.mlflow_client import connect

from tests.support.mlflow_server import MlflowServer
from tests.support.object_storage import SECRET, Bucket, ObjectStorage, use

pytestmark = pytest.mark.load


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    storage = ObjectStorage(tmp_path / "storage.log")
    storage.start()
    use(storage.endpoint, monkeypatch)
    yield Bucket("artifacts")
    storage.stop()


@pytest.fixture
def server(tmp_path: Path, bucket: Bucket) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path, bucket.address)
    server.start()
    yield server
    server.stop()


def test_versions_and_files_are_kept_there_and_found_again(server, bucket, settings, folders, monkeypatch, tmp_path):
    config = settings.model_copy(update={"registry": settings.registry.model_copy(update={"artifacts": "server"})})
    facts = register(config, folders, uri=server.uri)

    client = connect(server.uri)
    version = client.get_model_version(facts["model"], str(facts["candidate"]))
    assert version.source.startswith(f"{bucket.address}/")
    original = (folders["train"] / "model" / "model.safetensors").read_bytes()
    assert (
        resolve_model(f"models:/{facts['model']}/{facts['candidate']}", uri=server.uri) / "model.safetensors"
    ).read_bytes() == original

    names = {file.path for folder in ("evaluation", "plots", "data") for file in client.list_artifacts(facts["run_id"], folder)}
    assert names >= {"evaluation/report.json", "evaluation/answers.json", "plots/loss.png", "data/samples.html"}
    assert json.loads(Path(client.download_artifacts(facts["run_id"], "evaluation/report.json", str(tmp_path))).read_text())
    stored = b"".join(bucket.get(name) for name in bucket.names() if not name.endswith(".safetensors"))
    assert SECRET.encode() not in stored

    assert register(config, folders, uri=server.uri)["reused"]
    assert promote(facts["model"], facts["candidate"], uri=server.uri)["model"] == facts["model"]
    assert prune(facts["model"], 1, uri=server.uri)["removed"] == [facts["versions"][0]["version"]]
