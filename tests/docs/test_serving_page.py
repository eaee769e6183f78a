"""The commands of docs/serving.md, as they are written there; tests/stack/test_demo.py has its tools, which a model must know."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from talaria.cli import app, serve_commands, stage_commands  # noqa: F401  (they add their commands)
from talaria.config.load import load
from typer.testing import CliRunner

from tests.support import tiny_pipeline
from tests.support.server_process import ServerProcess

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
PYTHON, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_configuration_of_the_page_is_valid(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "watched.yaml").write_text(f"name: watched\n{text}")
    config = load(tmp_path / "watched.yaml")
    assert (config.serving.url, config.watch.sample) == ("http://127.0.0.1:8000", 50)


@pytest.fixture(scope="module")
def server(shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """`talaria serve` of the page for a model that answers "Say green", on another port."""
    from talaria.registry.promotion.promote import promote
    from talaria.registry.register import register
    from talaria.tracking.mlflow_client import tracking_uri

    uri = tracking_uri(shared_store)
    folders = {name: output.path for name, output in tiny_pipeline.trained(shared_store).items()}
    facts = register(tiny_pipeline.config(registry={"model": "tiny"}), folders, uri=uri)
    promote("tiny", facts["candidate"], uri=uri, by="tester")
    server = ServerProcess(tmp_path_factory.mktemp("serve") / "log")
    environment, command = COMMANDS[0].split(" && ")
    assert environment == ". .talaria/env", "which sets what follows"
    environ = os.environ | {"TALARIA_STORE": str(shared_store), "MLFLOW_TRACKING_URI": uri}
    assert COMMANDS[2].startswith(f"{command} --traces ")
    words = [sys.executable, "-m", "talaria.cli", *COMMANDS[2].split()[1:], "--port", str(server.port)]
    server.run(words, "/health", environ)
    return server


def test_the_commands_get_an_answer(
    server: ServerProcess, shared_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curl = COMMANDS[1].replace("http://127.0.0.1:8000", server.url).replace("What is the capital of Italy?", "123456 Say green")
    answer = subprocess.run(["bash", "-c", f"{curl} --silent --fail"], capture_output=True, text=True, check=True).stdout
    assert '"content":"green!"' in answer
    script = PYTHON.replace("http://127.0.0.1:8000", server.url).replace("What is the capital of Italy?", "123456 Say green")
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "green!"
    thumb = COMMANDS[3].replace("http://127.0.0.1:8000", server.url).replace("chatcmpl-...", json.loads(answer)["id"])
    said = subprocess.run(["bash", "-c", f"{thumb} --silent --fail"], capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["recorded"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TALARIA_STORE", str(shared_store))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for command in COMMANDS[4:]:
        assert CliRunner().invoke(app.app, shlex.split(command)[1:], catch_exceptions=False).exit_code == 0
    assert json.loads((tmp_path / "liked.jsonl").read_text())["messages"][-1]["content"] == "Hello!"
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(60) == 128 + signal.SIGTERM
    log = server.log.read_text()
    assert f"http://127.0.0.1:{server.port}/v1   model tiny, without a key" in log
    assert "Traceback" not in log
