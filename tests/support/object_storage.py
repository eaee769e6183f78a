"""An S3 server for tests, in a process of its own, and a look at its buckets past our own code."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server_process import ServerProcess

SECRET = "planted/Secret+Key0123456789"
"""The server takes any; tests look for it where it must not be."""


class ObjectStorage(ServerProcess):
    """moto's server. Every start has the same port; what it held is gone after a stop."""

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self.endpoint = self.url

    def start(self) -> None:
        self.run([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)], "/moto-api/")


def use(endpoint: str, environment: pytest.MonkeyPatch) -> None:
    """Have this process talk to `endpoint` from now on, with a client of its own."""
    import s3fs

    settings = {"ENDPOINT_URL": endpoint, "ACCESS_KEY_ID": "planted-key-id", "SECRET_ACCESS_KEY": SECRET}
    for name, value in (settings | {"DEFAULT_REGION": "us-east-1"}).items():
        environment.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()


class Bucket:
    """A new bucket of the server that AWS_ENDPOINT_URL names."""

    def __init__(self, name: str) -> None:
        import s3fs

        self.system = s3fs.S3FileSystem(use_listings_cache=False)
        self.name, self.address = name, f"s3://{name}/talaria"
        self.system.mkdir(name)

    def names(self) -> list[str]:
        """Of the objects below the prefix."""
        return [path.removeprefix(f"{self.name}/talaria/") for path in self.system.find(f"{self.name}/talaria")]

    def get(self, name: str) -> bytes:
        return bytes(self.system.cat_file(f"{self.name}/talaria/{name}"))

    def put(self, name: str, content: bytes) -> None:
        self.system.pipe_file(f"{self.name}/talaria/{name}", content)

    def delete(self, name: str) -> None:
        self.system.rm_file(f"{self.name}/talaria/{name}")


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
