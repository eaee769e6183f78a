"""Two machines training together, one of which dies: the other ends with a sentence, and started again both go on."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from talaria.store.store import Output, Store

from tests.support import process_trees, tiny_pipeline

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]
GRACE = 30


@dataclass
class Machine:
    """`talaria train` as it is started on one of two machines, on a folder that both share."""

    rank: int
    command: list[str]
    mark: str = field(default_factory=process_trees.new_mark)

    def start(self, rendezvous: str) -> subprocess.Popen[str]:
        options = ["--machine-rank", str(self.rank), "--rendezvous", rendezvous]
        environment = {**os.environ, process_trees.MARK: self.mark}
        return subprocess.Popen(
            [*self.command, *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment
        )

    def dies(self) -> None:
        """Everything at once, without a word, as when the power fails."""
        process_trees.kill_marked(self.mark)


def rendezvous() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def steps(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trajectory(folder: Path) -> list[Any]:
    return [[row[name] for name in ("step", "loss", "grad_norm", "tokens", "rows_checksum")] for row in steps(folder)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    return tiny_pipeline.prepare(
        Store(tmp_path_factory.mktemp("inputs")), tiny_pipeline.config(base={"shape": tiny_pipeline.SLOWER})
    )


@pytest.fixture(scope="module")
def command(inputs: dict[str, Output], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`talaria train` for two machines of one rank, but for where to and who."""
    tree = {"epochs": 3, "save_every": 4, "stop_grace": GRACE, "num_processes": 1, "num_machines": 2}
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    config.write_text(tiny_pipeline.config(train=tree).model_dump_json())
    talaria = str(Path(sys.executable).parent / "talaria")
    return [talaria, "train", str(config), f"--tokens={inputs['tokenize'].path}", f"--model={inputs['base'].path}"]


@pytest.fixture(scope="module")
def undisturbed(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """On one machine with two ranks."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    options = [f"--output={output}", "--set", "train.num_machines=1", "--num-processes", "2"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    return trajectory(output)


@pytest.mark.parametrize("dead", [0, 1])
def test_a_machine_dies_and_the_retry_of_both_goes_on(
    tmp_path: Path, command: list[str], undisturbed: list[Any], dead: int
) -> None:
    machines = [Machine(rank, [*command, f"--output={tmp_path / 'out'}"]) for rank in (0, 1)]
    try:
        where = rendezvous()
        running = [machine.start(where) for machine in machines]
        process_trees.eventually(lambda: len(steps(tmp_path / "out")) >= 6 or running[0].poll() is not None, within=120)
        assert running[0].poll() is None, running[0].communicate()[1]
        machines[dead].dies()
        survivor = running[1 - dead]
        _, said = survivor.communicate(timeout=120)
        assert survivor.returncode == 1, said
        assert "talaria: Training failed after step" in said.splitlines()[-1]
        process_trees.eventually(lambda: not process_trees.marked(machines[1 - dead].mark), within=GRACE + 5)
        running[dead].communicate()

        where = rendezvous()
        for again in [machine.start(where) for machine in machines]:
            _, said = again.communicate(timeout=180)
            assert again.returncode == 0, said
    finally:
        for machine in machines:
            machine.dies()
    (resume,) = [event for event in map(json.loads, (tmp_path / "out" / "events.jsonl").open()) if event["kind"] == "resume"]
    assert resume["step"] >= 4
    assert trajectory(tmp_path / "out") == undisturbed
