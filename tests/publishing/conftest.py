"""The registry's fixtures, and a version that is registered for every test here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from talaria.registry.register import register

from tests.registry.conftest import _no_address, folders, outputs, server, sqlite_uri, store
from tests.support import tiny_pipeline

__all__ = ["_no_address", "folders", "outputs", "server", "sqlite_uri", "store"]

REPOSITORY = Path(__file__).parents[2]
FORMER, MINIJINJA = "4.57.6", "3.1.0"
VLLM = ("vllm==0.33.0", "cbor2==6.3.0", "openai-harmony==0.0.8", "pybase64==1.5.1", "pyzmq==27.3.0")
"""vLLM's code, and what its rendering of prompts imports that is not here; the rest of what it needs is for a GPU."""
HUB_BASE = {"source": "hub", "repo": "some-lab/base"}
"""As the configuration says; the files are those of the tiny base."""


@pytest.fixture(scope="session")
def published_model(outputs, sqlite_uri: str) -> str:
    """A version whose base and data are, by its settings, repositories on the hub.

    In an experiment of its own: the registry's tests register the same training under the settings that it really has.
    """
    config = tiny_pipeline.config(
        registry={"model": "published", "experiment": "publishing"},
        download={"source": "hub", "repo": "some-lab/chats"},
        base=HUB_BASE,
    )
    facts = register(config, {name: output.path for name, output in outputs.items()}, uri=sqlite_uri)
    return f"models:/published/{facts['candidate']}"


@pytest.fixture
def folder_of(published_model: str, sqlite_uri: str) -> Path:
    from talaria.cli.chat import resolve_model

    return resolve_model(published_model, uri=sqlite_uri)


def talaria(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does; the hub is out of reach unless HF_ENDPOINT names a stand-in."""
    command = [Path(sys.executable).with_name("talaria"), *map(str, words)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    offline = {} if "HF_ENDPOINT" in environment else {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=kept | offline | environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4.57, what it needs, and minijinja, to be put before this environment's on Python's path."""
    return installed(tmp_path_factory.mktemp("former"), f"transformers=={FORMER}", f"minijinja=={MINIJINJA}")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vLLM's code for Python's path."""
    return installed(tmp_path_factory.mktemp("vllm"), "--no-deps", *VLLM)


def installed(folder: Path, *words: str) -> Path:
    sys.path.insert(0, str(REPOSITORY / "tools"))
    import install

    settings = {**install.pip_settings(), **os.environ}
    uv = install.find_uv(settings)
    install.run([uv, "pip", "install", "--quiet", "--target", str(folder), "--python", sys.executable, *words], settings)
    return folder
