"""The recipe for `transformers serve` of docs/publishing.md (`make test-wheel`)."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI

from tests.publishing.conftest import REPOSITORY, talaria
from tests.support.server_process import ServerProcess

PAGE = (REPOSITORY / "docs" / "publishing.md").read_text(encoding="utf-8")
(COMMAND,) = re.findall(r"^\$ (transformers serve .*)$", PAGE, re.MULTILINE)
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(600)]


def test_it_answers_as_the_model_was_trained(published_model: str, sqlite_uri: str, tmp_path: Path) -> None:
    done = talaria("publish", published_model, "--to", f"folder:{tmp_path / 'published'}", MLFLOW_TRACKING_URI=sqlite_uri)
    assert done.returncode == 0, done.stderr
    server = ServerProcess(tmp_path / "log")
    program, *words = shlex.split(COMMAND.replace("8001", str(server.port)))
    command = [str(Path(sys.executable).with_name(program)), *words]
    server.run(command, "/health", os.environ | {"HF_HUB_OFFLINE": "1"}, tmp_path)
    try:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        question = [{"role": "user", "content": "123456 Say green"}]
        said = client.chat.completions.create(model="published", messages=question, max_tokens=8)  # type: ignore[arg-type]
        assert said.choices[0].message.content == "green!"
        with pytest.raises(BadRequestError):
            client.chat.completions.create(model="other", messages=question)  # type: ignore[arg-type]
    finally:
        server.stop()
