"""The real trainer on two CPU ranks, killed again and again: what it ends with is what an undisturbed run ends with."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talaria.config.schema import Config
from talaria.store.store import Output, Store

from tests.support import process_trees, tiny_pipeline

SETTINGS = {"num_processes": 2, "epochs": 4, "save_every": 4, "stop_grace": 60}
DRIVER = """
import json, sys
from talaria.config import load as settings
from talaria.stages import run as stages
from talaria.store.store import Output, Store
store, tree, upstream = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
outputs = {name: Output.from_json(value) for name, value in upstream.items()}
print(json.dumps(stages.run_stage("train", settings.parse(tree, "test"), Store(store), outputs).as_json()))
"""


class Trainings:
    """Starts the stage `train` of one store in processes of their own, to be shot."""

    def __init__(self, root: Path, config: Config, upstream: dict[str, Output]) -> None:
        self.store, self.config, self.upstream, self.mark = Store(root), config, upstream, process_trees.new_mark()

    def start(self) -> subprocess.Popen[str]:
        upstream = json.dumps({name: self.upstream[name].as_json() for name in ("tokenize", "base")})
        command = [sys.executable, "-c", DRIVER, str(self.store.root), self.config.model_dump_json(), upstream]
        environment = {**os.environ, process_trees.MARK: self.mark, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def finish(self) -> Output:
        driver = self.start()
        told, errors = driver.communicate(timeout=240)
        assert driver.returncode == 0, errors
        return Output.from_json(json.loads(told))

    def steps_made(self) -> int:
        logs = list((self.store.root / ".work").glob("train-*/metrics.jsonl"))
        return len(logs[0].read_text().splitlines()) if logs else 0

    def ranks(self) -> list[int]:
        return [pid for pid, argv in process_trees.marked(self.mark).items() if "talaria.train" in argv[1:5]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trainings]:
    config = tiny_pipeline.config(base={"shape": tiny_pipeline.SLOWER}, train=SETTINGS)
    upstream = tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("inputs")), config)
    return lambda name: Trainings(tmp_path_factory.mktemp(name), config, upstream)


@pytest.fixture(scope="module")
def undisturbed(prepared: Callable[[str], Trainings]) -> Output:
    return prepared("undisturbed").finish()


@pytest.fixture
def trainings(prepared: Callable[[str], Trainings]) -> Iterator[Trainings]:
    trainings = prepared("storm")
    yield trainings
    process_trees.kill_marked(trainings.mark)


def curve(output: Output) -> list[Any]:
    """Everything of a run that time does not decide."""
    rows = [json.loads(line) for line in (output.path / "metrics.jsonl").read_text().splitlines()]
    return [[row[name] for name in ("step", "epoch", "loss", "lr", "grad_norm", "tokens", "supervised_tokens")] for row in rows]


def kill_a_rank(trainings: Trainings, driver: subprocess.Popen[str]) -> None:
    os.kill(random.Random(0).choice(trainings.ranks()), signal.SIGKILL)


def kill_the_task(trainings: Trainings, driver: subprocess.Popen[str]) -> None:
    driver.kill()


@pytest.mark.timeout(600)
def test_a_training_that_is_killed_ends_as_an_undisturbed_one(trainings: Trainings, undisturbed: Output) -> None:
    for kill in (kill_the_task, kill_a_rank):
        goal = trainings.steps_made() + 3
        driver = trainings.start()
        process_trees.eventually(lambda: trainings.steps_made() >= goal or driver.poll() is not None, within=120)  # noqa: B023
        assert driver.poll() is None, driver.communicate()[1]
        kill(trainings, driver)
        driver.communicate(timeout=120)
        process_trees.eventually(lambda: not process_trees.marked(trainings.mark), within=SETTINGS["stop_grace"] + 5)
    disturbed = trainings.finish()
    assert disturbed.key == undisturbed.key
    assert curve(disturbed) == curve(undisturbed)
    events = [json.loads(line)["kind"] for line in (disturbed.path / "events.jsonl").read_text().splitlines()]
    assert events.count("start") == 1
    assert events.count("resume") == 2
    assert disturbed.facts["heldout_losses"] == undisturbed.facts["heldout_losses"]
