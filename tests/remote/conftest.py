"""A bucket that the deployment's setting names, for store roots that share nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from object_storage import Bucket, ObjectStorage, use


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStorage]:
    storage = ObjectStorage(tmp_path_factory.mktemp("moto") / "server.log")
    storage.start()
    yield storage
    storage.stop()


@pytest.fixture
def bucket(storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A fresh one, which TALARIA_REMOTE names."""
    use(storage.endpoint, monkeypatch)
    bucket = Bucket(uuid.uuid4().hex)
    monkeypatch.setenv("TALARIA_REMOTE", bucket.address)
    return bucket
