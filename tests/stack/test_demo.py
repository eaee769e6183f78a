"""`make demo` as a newcomer has it: what it prints at its end is pasted, and the model answers as docs/serving.md says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from tests.support.server_process import ServerProcess

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "serving.md").read_text()
CURL = next(line.removeprefix("$ ") for line in PAGE.splitlines() if line.startswith("$ curl"))
STREAMED, TOOLS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
pytestmark = [pytest.mark.stack, pytest.mark.timeout(1800)]


def devstack(word: str, home: Path) -> str:
    command = [sys.executable, "-m", "talaria.devstack", word]
    done = subprocess.run(command, env=os.environ | {"TALARIA_HOME": str(home)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("newcomer") / ".talaria"
    try:
        yield devstack("demo", home)
    finally:
        devstack("down", home)


@pytest.fixture(scope="module")
def server(printed: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    (line,) = (line for line in printed.splitlines() if "&& talaria serve" in line)
    server = ServerProcess(tmp_path_factory.mktemp("serve") / "log")
    server.run(["bash", "-c", f"{line.partition('#')[0]} --port {server.port}"], "/health")
    yield server
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGTERM)
    server.process.wait(60)


def test_the_summary_shows_task_scores_beside_the_loss(printed: str) -> None:
    print(printed)  # for pytest -s
    found = dict(re.findall(r"^(held-out loss|task \w+) +\S+ +(\S+)$", printed, re.MULTILINE))
    assert found.keys() == {"held-out loss", "task questions", "task tools"}
    assert float(found["held-out loss"]) < 0.5
    assert float(found["task questions"]) > 0.5
    assert float(found["task tools"]) > 0.5


def test_curl_and_the_openai_client_get_answers_streamed_and_with_a_tool_call(server: ServerProcess) -> None:
    curl = CURL.replace("http://127.0.0.1:8000", server.url)
    assert '"content":"Rome"' in printed_by(["bash", "-c", f"{curl} --silent --fail"])
    assert run(STREAMED, server) == "Rome"
    assert run(TOOLS, server) == 'get_weather {"city": "Oslo"}\nIt is sunny in Oslo.'


def test_a_call_is_streamed_and_no_tool_is_called_where_none_is_needed(server: ServerProcess) -> None:
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    parameters = {"type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]}
    tool = {"name": "set_timer", "description": "Starts a timer", "parameters": parameters}
    asked = {"model": "tiny", "tools": [{"type": "function", "function": tool}]}
    question = [{"role": "user", "content": "Set a timer for 10 minutes."}]
    chunks = list(client.chat.completions.create(messages=question, stream=True, **asked))  # type: ignore[call-overload]
    (call,) = (call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ())
    assert (call.function.name, call.function.arguments) == ("set_timer", '{"minutes": 10}')
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    plain = [{"role": "user", "content": "What is the capital of Italy?"}]
    said = client.chat.completions.create(messages=plain, **asked).choices[0]  # type: ignore[call-overload]
    assert (said.message.content, said.message.tool_calls, said.finish_reason) == ("Rome", None, "stop")


def run(script: str, server: ServerProcess) -> str:
    return printed_by([sys.executable, "-c", script.replace("http://127.0.0.1:8000", server.url)])


def printed_by(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
