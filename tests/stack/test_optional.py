"""Services of profiles that are off by default: an object storage, and Celery's page."""

from __future__ import annotations

import uuid

import httpx
import pytest

from tests.stack.deployment import Deployment

pytestmark = [pytest.mark.load, pytest.mark.timeout(900)]


def test_the_object_storage_keeps_a_copy_for_those_who_log_in(deployment: Deployment) -> None:
    """The first upload makes the bucket; another service sees no more of SeaweedFS than the gateway."""
    deployment.engine.up("s3")
    copy = """
import sys, pathlib
from talaria.store.remote import Remote
from talaria.common.files import file_digest
remote, folder = Remote.from_environment(), pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "file").write_bytes(bytes(60 << 20))
manifest = {"files": {"file": {"sha256": file_digest(folder / "file")}}}
assert remote.manifest("train/0") is None
remote.push("train/0", folder, manifest)
(folder / "file").rename(folder / "sent")
remote.pull("train/0", remote.manifest("train/0"), folder)
assert (folder / "file").read_bytes() == (folder / "sent").read_bytes()
"""
    folder = f"/tmp/{uuid.uuid4().hex}"
    done = deployment.engine.execute("worker", ["env", "TALARIA_REMOTE=s3://talaria/store", "python", "-c", copy, folder])
    assert done.returncode == 0, done.stdout
    reached = {}
    for port in (8333, 8888, 9333, 8080):
        ask = f"http://s3:{port}/buckets/talaria/"
        done = deployment.engine.execute(
            "worker", ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", ask]
        )
        reached[port] = done.stdout
    assert reached == {8333: "403", 8888: "000", 9333: "000", 8080: "000"}


def test_flower_answers_its_healthcheck_and_wants_a_password(deployment: Deployment) -> None:
    deployment.engine.up("flower")
    url = deployment.engine.url("flower", 5555)
    assert httpx.get(f"{url}/workers", timeout=30, trust_env=False).status_code == 401
    page = httpx.get(f"{url}/workers", auth=("admin", deployment.values["ADMIN_PASSWORD"]), timeout=30, trust_env=False)
    assert page.status_code == 200
    deployment.engine.stop("flower")
