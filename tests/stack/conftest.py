"""One production stack for all tests here, as docker-compose.yaml describes it; each test leaves it healthy."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from talaria.devstack.compose_env import fresh_secrets, placement, storage_login

from tests.stack.deployment import Deployment
from tests.stack.engine import Engine
from tests.stack.image import POSTGRES, REPOSITORY

QUICK = {  # a small machine: fewer processes and threads
    "api-server": {"AIRFLOW__API__WORKERS": "1"},
    "dag-processor": {"AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1"},
    "worker": {"OMP_NUM_THREADS": "1"},  # threads that wait for each other crawl where services start beside them
}
DEFAULT = ("mlflow", "api-server", "scheduler", "dag-processor", "triggerer", "worker")


@pytest.fixture(scope="session", autouse=True)
def _sigterm_is_ctrl_c() -> Iterator[None]:
    """Whoever stops the session leaves no service behind: fixtures are torn down as usual."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    """All default services, healthy by their own healthchecks."""
    if os.geteuid() != 0 or not POSTGRES or not shutil.which("redis-server") or not shutil.which("ip"):
        pytest.skip("needs root, iproute2 and Debian's postgresql and redis-server (make test-stack installs them)")
    if REPOSITORY.is_relative_to("/tmp"):
        pytest.fail("each service has a /tmp of its own, which hides this clone and its .venv; put the clone elsewhere")
    values = fresh_secrets() | storage_login() | placement(has_gpu=False) | {"AWS_ENDPOINT_URL": "http://s3:8333"}
    values |= {"HF_TOKEN": "hf_" + fresh_secrets()["ADMIN_PASSWORD"], "WORKER_CONCURRENCY": "2"}
    work = Path(tempfile.mkdtemp(prefix="talaria-stack-"))
    work.chmod(0o755)
    try:
        with Engine(work, values, overrides=QUICK, sizes={"talaria": "400m"}) as engine:
            engine.up(*DEFAULT, timeout=400)
            yield Deployment(engine, values)
    finally:
        shutil.rmtree(work, ignore_errors=True)
