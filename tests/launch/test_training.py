"""The real trainer beneath the real launcher, killed twice: it ends with what undisturbed ranks end with.

Its two ranks are started, not forked, as those share the parent's random generator and imports; in a pod's environment and a
hostile working folder. One training for all of it: each start of two ranks costs half a minute of processor time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from talaria.config.schema import Config
from talaria.store.store import Store
from talaria.train.model.causal_lm import ModelOptions
from talaria.train.model.loading import load_model
from talaria.train.train_state import TrainJob

from tests.support import process_trees, tiny_pipeline, working_folder
from tests.train import ranks

POD = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "PET_NNODES": "2", "SLURM_PROCID": "1"}
LORA = {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj"]}
SETTINGS = {"num_processes": 2, "epochs": 3, "save_every": 4, "keep_last": 100, "stop_grace": 60, "lora": LORA}


def config(processes: int = 2) -> Config:
    return tiny_pipeline.config(base={"shape": tiny_pipeline.SLOWER}, train=SETTINGS | {"num_processes": processes})


class Trainings:
    """Starts `talaria train` in one output folder again and again, to be shot."""

    def __init__(self, root: Path, inputs: dict[str, Path]) -> None:
        self.root, self.output, self.mark = root, root / "out", process_trees.new_mark()
        working_folder.fill(root)
        accelerate = root / "home" / "accelerate"
        accelerate.mkdir(parents=True)
        (accelerate / "default_config.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 8\nuse_cpu: true\n")
        (root / "settings.yaml").write_text(config().model_dump_json())
        self.command = [str(Path(sys.executable).parent / "talaria"), "train", "settings.yaml", "--json", "--output=out"]
        self.command += [f"--tokens={inputs['tokenize']}", f"--model={inputs['base']}"]

    def start(self, steps: int) -> subprocess.Popen[str]:
        """Return once `steps` more steps are made."""
        own = {process_trees.MARK: self.mark, "HF_HOME": str(self.root / "home")}
        goal = self.steps_made() + steps
        task = subprocess.Popen(
            self.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **POD, **own},
            cwd=self.root,
        )
        process_trees.eventually(lambda: self.steps_made() >= goal or task.poll() is not None, within=120)
        assert task.poll() is None, task.communicate()[1]
        return task

    def steps_made(self) -> int:
        return len(ranks.steps(self.output))

    def ranks(self) -> list[int]:
        return [pid for pid, argv in process_trees.marked(self.mark).items() if "talaria.train" in argv[1:5]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    outputs = tiny_pipeline.prepare(Store(tmp_path_factory.mktemp("inputs")), config())
    load_model(outputs["base"].path, ModelOptions("fp32"), "cpu")  # what this imports, forked ranks have
    return {name: output.path for name, output in outputs.items()}


@dataclass(frozen=True)
class Disturbed:
    output: Path
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> Iterator[Disturbed]:
    """A training whose task was killed, and then, when it went on, one of its ranks."""
    trainings = Trainings(tmp_path_factory.mktemp("disturbed"), inputs)
    try:
        task = trainings.start(steps=3)
        task.kill()
        task.communicate()
        process_trees.eventually(lambda: not process_trees.marked(trainings.mark), within=SETTINGS["stop_grace"] + 5)
        task = trainings.start(steps=3)
        os.kill(random.Random(0).choice(trainings.ranks()), signal.SIGKILL)
        told, errors = task.communicate(timeout=120)
        assert task.returncode == 0, errors
        yield Disturbed(trainings.output, json.loads(told))
    finally:
        process_trees.kill_marked(trainings.mark)


@pytest.fixture
def forked(inputs: dict[str, Path], tmp_path: Path) -> TrainJob:
    return TrainJob(config(0), inputs["tokenize"], inputs["base"], tmp_path / "forked")


def curve(folder: Path) -> list[Any]:
    """Everything of a run that time does not decide."""
    return [ranks.steps(folder), [row["loss"] for row in ranks.read_lines(folder / "evals.jsonl")]]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in ranks.steps(folder)]


def other_generator(rank: int) -> None:
    """For `before`: as every process has another."""
    torch.manual_seed(os.getpid())


@pytest.mark.timeout(600)
def test_a_training_that_is_killed_ends_as_an_undisturbed_one(disturbed: Disturbed, forked: TrainJob) -> None:
    ranks.run(forked, 2, other_generator)
    assert curve(disturbed.output) == curve(forked.output)
    weights = "model/model.safetensors"
    assert (disturbed.output / weights).read_bytes() == (forked.output / weights).read_bytes()
    assert [len(ranks.events(disturbed.output, kind)) for kind in ("start", "resume", "done")] == [1, 2, 1]
    assert list(disturbed.facts["heldout_losses"].values()) == curve(forked.output)[1]


def test_the_launcher_decides_who_trains(disturbed: Disturbed) -> None:
    status = ranks.status(disturbed.output)
    assert (status["state"], status["world_size"]) == ("done", 2)


def test_one_rank_gives_the_same_curve_and_goes_on_from_what_two_have_saved(disturbed: Disturbed, forked: TrainJob) -> None:
    half = disturbed.output / "checkpoints" / "step-00000020"
    (forked.output / "checkpoints").mkdir(parents=True)
    os.symlink(half, forked.output / "checkpoints" / half.name)
    ranks.run(forked, 1, other_generator)
    assert ranks.events(forked.output, "resume")[0]["step"] == 20
    assert losses(forked.output) == pytest.approx(losses(disturbed.output)[20:], rel=1e-5)
    alone, again = (replace(forked, output=forked.output.with_name(name)) for name in ("alone", "again"))
    for job in (alone, again):
        ranks.run(job, 1, other_generator)
    assert losses(alone.output) == pytest.approx(losses(disturbed.output), rel=1e-5)
    assert curve(again.output) == curve(alone.output), "to the bit"


def test_the_adapter_merges_and_leaves_the_rest_to_the_bit(disturbed: Disturbed, inputs: dict[str, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, model = inputs["base"], disturbed.output / "model"
    before, merged = (load_file(folder / "model.safetensors") for folder in (base, model))
    adapted = {name for name in before if any(f".{target}." in name for target in LORA["targets"])}
    assert adapted
    assert before.keys() == merged.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, merged[name]) != (name in adapted), name
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), model / "adapter")
    by_peft = wrapped.merge_and_unload().state_dict()
    for name in adapted:
        torch.testing.assert_close(by_peft[name], merged[name], rtol=1e-6, atol=1e-7)
