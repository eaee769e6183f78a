"""Launches of a stub trainer (stub/talaria/train), beneath the real `accelerate launch` or a quick one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from talaria.config import load as settings
from talaria.config.schema import Config
from talaria.launch.accelerate_command import Machine
from talaria.launch.stage import launch
from talaria.process.supervisor import Stop
from talaria.store.store import Store

from tests.support import process_trees, tiny_pipeline, working_folder

STUB = Path(__file__).parent / "stub"
QUICK = Path(__file__).parent / "quick_launcher"


@dataclass
class Launches:
    """Starts the stub again and again in one folder; `lines` is what was told by the last start."""

    root: Path
    mark: str = field(default_factory=process_trees.new_mark)
    lines: list[str] = field(default_factory=list)
    restarts: int = 0
    quick: bool = False
    """Whether the launcher is the quick one: where accelerate's own ways play no part."""

    @property
    def output(self) -> Path:
        return self.root / "output"

    def config(self, ranks: int = 1, grace: float = 60.0) -> Config:
        return settings.parse(
            {"name": "stub", "train": {"num_processes": ranks, "stop_grace": grace, "restarts": self.restarts}}, "test"
        )

    def machine(self, rank: int = 0, rendezvous: str | None = None, **stub: Any) -> Machine:
        path = os.pathsep.join(map(str, [QUICK, STUB] if self.quick else [STUB]))
        env = {"PYTHONPATH": path, "STUB": json.dumps(stub), process_trees.MARK: self.mark}
        return Machine(rank, rendezvous, env=env)

    def start(self, ranks: int = 1, grace: float = 60.0, stop: Stop | None = None, on_line: Any = None, **stub: Any) -> Any:
        """Launch and wait. `on_line` hears each line too."""
        self.lines = []

        def hear(line: str) -> None:
            self.lines.append(line)
            if on_line:
                on_line(line)

        return launch(
            self.config(ranks, grace),
            self.root / "tokens",
            self.root / "model",
            self.output,
            on_line=hear,
            machine=self.machine(**stub),
            stop=stop or Stop(),
        )

    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.output / "status.json").read_text()))

    def steps(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.output / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """tokens and model: small, and such that a training could start."""
    outputs = tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("inputs")), tiny_pipeline.config())
    return {"tokens": outputs["tokenize"].path, "model": outputs["base"].path}


@pytest.fixture
def launches(tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    for name, folder in inputs.items():
        shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    working_folder.fill(tmp_path)
    launches = Launches(tmp_path)
    yield launches
    process_trees.kill_marked(launches.mark)


@pytest.fixture
def quick_launcher(launches: Launches) -> None:
    launches.quick = True
