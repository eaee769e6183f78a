"""The commands of docs/serving.md, as they are written there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_pipeline
from tests.support.server_process import ServerProcess

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "serving.md").read_text()
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def server(shared_store: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerProcess:
    """`talaria serve` of the page for a model that answers "Say green", on another port."""
    from talaria.registry.promotion import promote
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
    words = [sys.executable, "-m", "talaria.cli", *command.split()[1:], "--port", str(server.port)]
    server.run(words, "/health", environ)
    return server


def test_the_commands_get_an_answer(server: ServerProcess) -> None:
    curl = COMMANDS[1].replace("http://127.0.0.1:8000", server.url).replace('"content": "Hi"', '"content": "123456 Say green"')
    answer = subprocess.run(["bash", "-c", f"{curl} --silent --fail"], capture_output=True, text=True, check=True).stdout
    assert '"content":"green!"' in answer
    script = PYTHON.replace("http://127.0.0.1:8000", server.url).replace('"Hi"', '"123456 Say green"')
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "green!"
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(60) == 128 + signal.SIGTERM
    log = server.log.read_text()
    assert f"http://127.0.0.1:{server.port}/v1   model tiny, without a key" in log
    assert "Traceback" not in log
