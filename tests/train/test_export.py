"""What a run leaves: models that Hugging Face loads, of the right dtype, with the right weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from talaria.train import export
from talaria.train.train_state import TrainJob
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.train import ranks


def newest_state(output: Path) -> dict[str, torch.Tensor]:
    """Parameters of the newest checkpoint of a run on one rank."""
    folder = max((output / "checkpoints").iterdir())
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    return {name.removeprefix("param.hf."): tensor for name, tensor in tensors.items() if name.startswith("param.")}


def test_the_model_loads_as_it_is_and_stops(job: Callable[..., TrainJob], folders: dict[str, Path]) -> None:
    done = job(epochs=1)
    ranks.run(done)
    model = AutoModelForCausalLM.from_pretrained(done.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(done.output / "model")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.generation_config.eos_token_id[0] == end
    messages = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "<|im_start|>user\nhello<|im_end|>\n"
    assert model.config.tie_word_embeddings
    stored = load_file(done.output / "model" / "model.safetensors")
    assert set(stored) == set(load_file(folders["base"] / "model.safetensors")), "tied weights are stored once"
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}, "the base's dtype"
    for name, tensor in newest_state(done.output).items():
        assert torch.equal(stored[name].view(-1), tensor)


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize(("size", "sharding"), [(1, "auto"), (2, "replicate"), (2, "shard"), (4, "hybrid")])
def test_mixed_precision_keeps_fp32_where_it_matters(
    job: Callable[..., TrainJob], folders: dict[str, Path], tmp_path: Path, size: int, sharding: str
) -> None:
    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(folders["base"], dtype=torch.bfloat16).save_pretrained(base)
    small: dict[str, Any] = {"base": base, "max_steps": 4, "lr": 1e-5, "min_lr": 1e-5, "warmup_fraction": 0.0}
    mixed = job(precision="mixed", sharding=sharding, shard_size=2 if sharding == "hybrid" else 0, save_every=1, **small)
    ranks.run(mixed, size)
    for file in (max((mixed.output / "checkpoints").iterdir())).glob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}
    stored = load_file(mixed.output / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    reference = ranks.steps(mixed.output)
    plain = job("plain", precision="fp32", **small)
    ranks.run(plain)
    losses = [step["loss"] for step in ranks.steps(plain.output)]
    # Five times as far apart if masters begin on the numbers of the base, since its products then do not see small updates.
    assert [step["loss"] for step in reference] == pytest.approx(losses, rel=1e-4)


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_a_mixed_run_goes_on_to_the_bit(job: Callable[..., TrainJob], sharding: str) -> None:
    settings: dict[str, Any] = {"precision": "mixed", "sharding": sharding, "max_steps": 8, "save_every": 3}
    whole, halves = job("whole", **settings), job("halves", **settings)
    ranks.run(whole, 2)
    stopped = ranks.Ranks(halves, 2, ranks.at_step(4, 0, ranks.signal.SIGTERM))
    assert stopped.codes() == [0, 0], stopped.log()
    ranks.run(halves, 2)
    assert ranks.events(halves.output, "resume")
    assert ranks.steps(halves.output) == ranks.steps(whole.output)
    weights = "model/model.safetensors"
    assert (halves.output / weights).read_bytes() == (whole.output / weights).read_bytes()


def test_kept_models(job: Callable[..., TrainJob]) -> None:
    kept = job(epochs=2, keep_epochs=True, keep_best=True, eval_every=3)
    ranks.run(kept)
    exports = ranks.events(kept.output, "export")
    folders = sorted(folder.name for folder in (kept.output / "exports").iterdir())
    evaluations = ranks.read_lines(kept.output / "evals.jsonl")
    best = min(evaluations, key=lambda record: record["loss"])["step"]
    ends = [11, 21]  # 162 conversations by 16
    assert folders == sorted({f"step-{step:08d}" for step in (*ends, best)})
    assert {event["why"] for event in exports} == {"epoch", "best"}
    final = kept.output / "model" / "model.safetensors"
    assert final.samefile(kept.output / "exports" / f"step-{ends[-1]:08d}" / "model.safetensors"), "a second name, no second copy"


def test_it_stops_when_it_gets_no_better(job: Callable[..., TrainJob]) -> None:
    hopeless = job(epochs=3, lr=1e-12, min_lr=0, eval_every=2, patience=2)
    ranks.run(hopeless, 2)
    status = ranks.status(hopeless.output)
    evaluations = ranks.read_lines(hopeless.output / "evals.jsonl")
    assert status["state"] == "done"
    assert status["step"] < status["total_steps"]
    assert "stopped early" in status["reason"]
    best = min(range(len(evaluations)), key=lambda index: evaluations[index]["loss"])
    assert len(evaluations) == best + 3
    assert (hopeless.output / "model" / "config.json").exists()


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize(("size", "sharding"), [(1, "auto"), (2, "shard")])
def test_lora_trains_the_adapter_only_and_merges(
    job: Callable[..., TrainJob], folders: dict[str, Path], size: int, sharding: str
) -> None:
    from peft import PeftModel

    adapted = job(lora={"rank": 4, "dropout": 0.1}, max_steps=4, save_every=2, sharding=sharding)
    ranks.run(adapted, size)
    base = AutoModelForCausalLM.from_pretrained(folders["base"])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    merged = PeftModel.from_pretrained(base, adapted.output / "model" / "adapter").merge_and_unload().state_dict()
    stored = AutoModelForCausalLM.from_pretrained(adapted.output / "model").state_dict()
    changed = {name for name, tensor in stored.items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in stored if name.endswith("_proj.weight")}
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6)
    for file in (max((adapted.output / "checkpoints").iterdir())).glob("*.safetensors"):
        assert all(".lora_" in name for name in load_file(file)), "a checkpoint holds what is trained"


def test_an_adapter_merges_into_a_bf16_base_with_one_rounding(
    job: Callable[..., TrainJob], folders: dict[str, Path], tmp_path: Path
) -> None:
    from peft import PeftModel

    base = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(folders["base"], dtype=torch.bfloat16).save_pretrained(base)
    adapted = job(base=base, precision="mixed", lora={"rank": 4, "targets": ["q_proj"]}, max_steps=3)
    ranks.run(adapted)
    exact = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(exact, adapted.output / "model" / "adapter").merge_and_unload().state_dict()
    for name, tensor in load_file(adapted.output / "model" / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16
        assert ((tensor.float() - merged[name]).abs() <= 2**-8 * merged[name].abs()).all(), name


def test_large_models_are_stored_in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "_SHARD_BYTES", 100)
    tensors = {f"w{index}": torch.full((10,), float(index)) for index in range(6)}
    export.save_weights(tensors.items(), tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 240
    assert sorted(set(index["weight_map"].values())) == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], tensors[name])
