"""The Dockerfile: what it says fits docker-compose.yaml and the repository, and its install step finds all that it wants."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from talaria.devstack.compose_env import fresh_secrets

from tests.stack.compose import load_compose, ours
from tests.stack.engine import REPOSITORY


def instructions(name: str) -> list[str]:
    """Arguments of the Dockerfile's instructions of this name, continued lines joined."""
    text = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_image_is_what_the_services_need() -> None:
    system, install = instructions("RUN")
    compose = (REPOSITORY / "docker-compose.yaml").read_text()
    (user,) = re.findall(r"useradd --uid (\d+)", system)
    document = load_compose(REPOSITORY / "docker-compose.yaml", fresh_secrets())
    assert {service["user"] for service in ours(document).values()} == {f"{user}:{user}"}
    packages = system.split("--no-install-recommends")[1].split("&&")[0].split()
    assert "curl" in compose
    assert {"curl", "tini"} <= set(packages)
    assert "ENV PATH=/opt/talaria/deploy:$PATH" in (REPOSITORY / "Dockerfile").read_text()
    assert "-c requirements.lock" in install


@pytest.mark.load
def test_the_install_step_finds_every_package(tmp_path: Path) -> None:
    """In a fresh environment, beside nothing but the files that the image has by then; told to download no more than it must."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    folder = tmp_path / "image"
    folder.mkdir()
    *files, _ = instructions("COPY")[0].split()
    for file in files:
        shutil.copy(REPOSITORY / file, folder)
    command = instructions("RUN")[1].replace("pip install --no-cache-dir", "pip install --dry-run")
    environment = os.environ | {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "VARIANT": "cuda"}
    done = subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = re.findall("Would install (.*)", done.stdout)
    for package in (
        "torch",
        "apache-airflow",
        "apache-airflow-providers-celery",
        "mlflow",
        "s3fs",
        "boto3",
        "flower",
        "nvidia-ml-py",
        "talaria",
    ):
        assert re.search(rf"\b{package}-\d", found), package
