"""The real trainer beneath the real launcher, on two started (not forked) ranks, in a pod's environment and a hostile folder.

One launch for all of it: forked ranks share the parent's random generator and imports, which hid what is asked here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from talaria.config.schema import Config
from talaria.launch.accelerate_command import Machine
from talaria.launch.stage import launch
from talaria.process.supervisor import Stop

from tests.support import tiny_pipeline, working_folder

POD = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511", "PET_NNODES": "2", "SLURM_PROCID": "1"}
LORA = {"rank": 4, "targets": ["q_proj", "v_proj", "down_proj"]}


def config(ranks: int) -> Config:
    return tiny_pipeline.config(train={"num_processes": ranks, "max_steps": 6, "save_every": 3, "keep_last": 2, "lora": LORA})


def rows(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, Path]) -> Path:
    """The training folder of a LoRA run on two ranks."""
    root = tmp_path_factory.mktemp("hostile")
    working_folder.fill(root)
    accelerate = root / "home" / "accelerate"
    accelerate.mkdir(parents=True)
    (accelerate / "default_config.yaml").write_text("distributed_type: MULTI_GPU\nnum_processes: 8\nuse_cpu: true\n")
    before, where = dict(os.environ), Path.cwd()
    try:
        os.environ.update(POD, HF_HOME=str(root / "home"), OMP_NUM_THREADS="1")
        os.chdir(root)
        launch(
            config(2), inputs["tokens"], inputs["model"], root / "out", machine=Machine(), stop=Stop(), on_line=lambda line: None
        )
    finally:
        os.chdir(where)
        os.environ.clear()
        os.environ.update(before)
    return root / "out"


def test_the_launcher_decides_who_trains(two: Path) -> None:
    status = json.loads((two / "status.json").read_text())
    assert (status["state"], status["world_size"], status["step"]) == ("done", 2, 6)


def test_adapters_are_drawn_alike_on_any_number_of_ranks(two: Path, tmp_path: Path, inputs: dict[str, Path]) -> None:
    from talaria.train.train_state import TrainJob

    from tests.train import ranks

    one = TrainJob(config(1), inputs["tokens"], inputs["model"], tmp_path / "one")
    ranks.run(one, 1)
    losses = [row["loss"] for row in rows(two)]
    assert [row["loss"] for row in ranks.steps(one.output)] == pytest.approx(losses, rel=1e-5)
    # And a run on one rank goes on from what two ranks saved.
    resumed = TrainJob(config(1), inputs["tokens"], inputs["model"], tmp_path / "resumed")
    half = two / "checkpoints" / "step-00000003"
    (resumed.output / "checkpoints").mkdir(parents=True)
    os.symlink(half, resumed.output / "checkpoints" / half.name)
    marker = json.loads((half / "complete.json").read_text())
    status = {"state": "preempted", "step": 3, "identity": marker["identity"]}
    (resumed.output / "status.json").write_text(json.dumps(status))
    ranks.run(resumed, 1)
    assert ranks.events(resumed.output, "resume")[0]["step"] == 3
    assert [row["loss"] for row in ranks.steps(resumed.output)] == pytest.approx(losses[3:], rel=1e-5)


def test_the_adapter_merges_and_leaves_the_rest_to_the_bit(two: Path, inputs: dict[str, Path]) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, merged = (load_file(folder / "model.safetensors") for folder in (inputs["model"], two / "model"))
    adapted = {name for name in base if any(f".{target}." in name for target in LORA["targets"])}
    assert adapted
    assert base.keys() == merged.keys()
    for name, tensor in base.items():
        assert torch.equal(tensor, merged[name]) != (name in adapted), name
    wrapped = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs["model"]), two / "model" / "adapter")
    by_peft = wrapped.merge_and_unload().state_dict()
    for name in adapted:
        torch.testing.assert_close(by_peft[name], merged[name], rtol=1e-6, atol=1e-7)
