"""What a rank refuses while it sets up: exit 2, one sentence, before step 1; and what it goes on from all the same."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from talaria.common.errors import ConfigError, DataError
from talaria.train.model.causal_lm import ModelOptions, require_fixed_positions
from talaria.train.model.loading import load_model
from talaria.train.model.lora import LoraOptions
from talaria.train.train_state import TrainJob

from tests.train import ranks
from tests.train.tiny_models import save_tiny

WEIGHTS = "model.safetensors"
FP32 = ModelOptions("fp32")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


def without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def prefixed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}


def one_more_layer(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {name.replace(".2.", ".3."): tensor.clone() for name, tensor in tensors.items() if ".layers.2." in name}


def another_head(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}


def narrower(tensors: dict[str, Any]) -> dict[str, Any]:
    return tensors | {"model.norm.weight": tensors["model.norm.weight"][:-1].clone()}


def with_nan(tensors: dict[str, Any]) -> dict[str, Any]:
    changed = tensors["model.layers.1.mlp.up_proj.weight"].clone()
    changed[3, 4] = math.nan
    return tensors | {"model.layers.1.mlp.up_proj.weight": changed}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without("lm_head"), r"lacks lm_head\.weight, which its config\.json asks for"),
        (without("layers.1."), r"lacks model\.layers\.1\.\S+, .* and \d+ more"),
        (prefixed, r"lacks .*and holds _orig_mod\.\S+"),
        (one_more_layer, r"holds model\.layers\.3\.\S+, .*which its config\.json does not know"),
        (narrower, r"model\.norm\.weight is \[31\], but its config\.json asks for \[32\]"),
        (with_nan, r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"),
    ],
)
def test_a_base_must_hold_exactly_the_model_that_it_describes(
    untied: Path, tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], sentence: str
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(untied, folder)
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    with pytest.raises(DataError, match=sentence) as refused:
        load_model(folder, FP32, "cpu")
    assert "\n" not in str(refused.value)


def test_a_head_that_the_config_denies(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, tie_word_embeddings=True)
    save_file(another_head(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    with pytest.raises(DataError, match=r"holds lm_head\.weight beside another .*config\.json ties them"):
        load_model(folder, FP32, "cpu")


def test_a_rank_says_so_in_one_sentence(job: Callable[..., TrainJob], folders: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(folders["base"], base)
    (base / "manifest.json").unlink()
    save_file(without("layers.0.")(load_file(base / WEIGHTS)), base / WEIGHTS)
    bad = job(base=base)
    refused = ranks.Ranks(bad, 1)
    assert refused.codes() == [2], refused.log()
    assert "lacks model.layers.0." in refused.log()
    assert "Traceback" not in refused.log()
    assert ranks.status(bad.output)["kind"] == "user"


def lora(targets: str | list[str]) -> ModelOptions:
    return ModelOptions("fp32", lora=LoraOptions(4, 32.0, 0.0, targets, seed=1))


def adapted(folder: Path, targets: str | list[str]) -> set[str]:
    model = load_model(folder, lora(targets), "cpu")
    names = [name for name, _ in model.hf.named_parameters() if "lora_A" in name]
    return {name.partition(".lora_A")[0].rpartition(".")[2] for name in names}


def test_targets_mean_what_peft_means_by_them(untied: Path) -> None:
    assert adapted(untied, ["q_proj", "mlp.up_proj"]) == {"q_proj", "up_proj"}
    assert adapted(untied, r".*\.(q|k)_proj") == {"q_proj", "k_proj"}
    assert adapted(untied, "all-linear") == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert adapted(untied, "q_proj") == {"q_proj"}


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (r".*(q_proj|lm_head)", "matches lm_head, the head, which gets no adapter"),
        (r".*(q_proj|embed_tokens)", r"matches model\.embed_tokens, the embedding, which gets no adapter"),
        (["lm_head"], "the head"),
        ("q_porj", "'q_porj' matches no module; the linear layers are down_proj, gate_proj, k_proj, o_proj, q_proj,"),
        (["q_proj", "v_porj"], "'v_porj' matches no module"),
        (r".*self_attn", "which is no linear layer"),
    ],
)
def test_targets_that_cannot_be_trained(untied: Path, targets: str | list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_model(untied, lora(targets), "cpu")


def test_a_draw_of_adapters_depends_on_seed_and_name_alone(untied: Path) -> None:
    def drawn(seed: int, targets: str | list[str] = "all-linear") -> dict[str, torch.Tensor]:
        torch.manual_seed(torch.seed() >> 1)  # as every process has another
        model = load_model(untied, ModelOptions("fp32", lora=LoraOptions(4, 32.0, 0.0, targets, seed)), "cpu")
        return {name: param.detach() for name, param in model.hf.named_parameters() if "lora_" in name}

    one, again, other, fewer = drawn(1), drawn(1), drawn(2), drawn(1, ["v_proj"])
    for name, tensor in one.items():
        assert torch.equal(tensor, again[name])
        assert not tensor.any() if "lora_B" in name else not torch.equal(tensor, other[name])
    assert all(torch.equal(tensor, one[name]) for name, tensor in fewer.items())
    a = torch.cat([tensor.flatten() for name, tensor in one.items() if "lora_A" in name and "down_proj" not in name])
    assert a.abs().max() <= 1 / math.sqrt(32)
    assert a.std() == pytest.approx(1 / math.sqrt(3 * 32), rel=0.05)


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 64),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 32,
            },
            32,
        ),
    ],
)
def test_position_encodings_that_depend_on_the_batch(tmp_path: Path, rope: dict[str, Any], limit: int) -> None:
    model = load_model(save_tiny(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope), FP32, "cpu")
    require_fixed_positions(model, limit)
    with pytest.raises(ConfigError, match=rf"changes beyond {limit} tokens.*set tokenize\.max_tokens to {limit}"):
        require_fixed_positions(model, limit + 1)


@pytest.mark.parametrize("kernels", ["auto", "plain"])
def test_the_padding_tokens_row_is_trained_like_any_other(tmp_path: Path, kernels: Any) -> None:
    from talaria.train.model.causal_lm import sum_loss

    from tests.train.tiny_models import batch_of, conversations

    texts = conversations([8, 13])
    pad = int(texts[0][2])
    folder = save_tiny(tmp_path, pad_token_id=pad, tie_word_embeddings=False)
    model = load_model(folder, ModelOptions("fp32", kernels=kernels), DEVICE)
    sum_loss(model, batch_of(texts, share=1.0).to(DEVICE)).backward()
    assert model.core.model.embed_tokens.weight.grad[pad].any()
    assert model.core.lm_head.weight.grad[pad].any()


def warnings(job: TrainJob) -> list[str]:
    return [event["message"] for event in ranks.events(job.output, "warning")]


def test_a_run_that_would_train_nothing(job: Callable[..., TrainJob]) -> None:
    nothing = job(epochs=1, global_batch=1000)
    refused = ranks.Ranks(nothing, 1)
    assert refused.codes() == [2], refused.log()
    assert "whose learning rate is 0" in ranks.status(nothing.output)["reason"]


def test_numbers_that_make_little_sense_are_told(job: Callable[..., TrainJob]) -> None:
    odd = job("odd", epochs=3, global_batch=200, warmup_fraction=1.0)
    ranks.run(odd)
    assert [message[:15] for message in warnings(odd)] == ["warm-up (train.", "the 162 convers"]
    one = job("one", max_steps=1)
    ranks.run(one)
    assert "nothing is trained" in warnings(one)[0]
    whole = job("whole", max_steps=2, sharding="shard")
    ranks.run(whole, 2)
    assert [message[:49] for message in warnings(whole)] == ["train.sharding is shard, but the whole model fits"]
    fine = job("fine", max_steps=2)
    ranks.run(fine)
    assert warnings(fine) == []


def test_it_goes_on_from_whole_checkpoints_whatever_happened_to_the_small_files(job: Callable[..., TrainJob]) -> None:
    undisturbed, damaged = job("undisturbed", max_steps=8, save_every=3), job("damaged", max_steps=8, save_every=3)
    ranks.run(undisturbed)
    stopped = ranks.Ranks(damaged, 1, ranks.at_step(5, 0, ranks.signal.SIGTERM))
    assert stopped.codes() == [0], stopped.log()
    status, metrics = damaged.output / "status.json", damaged.output / "metrics.jsonl"
    status.write_text(status.read_text()[:20])
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:2], lines[2][:30], *lines[3:]]))
    nonsense = damaged.output / "checkpoints" / "step-00000099"
    shutil.copytree(damaged.output / "checkpoints" / "step-00000006", nonsense)
    marker = json.loads((nonsense / "complete.json").read_text())
    (nonsense / "complete.json").write_text(json.dumps(marker | {"progress": {"step": "many", "planet": 9}}))
    ranks.run(damaged)
    assert ranks.events(damaged.output, "resume")[0]["step"] == 6
    assert any("step-00000099 is passed over" in message for message in warnings(damaged))
    assert any("metrics.jsonl has 4 of the 6 steps" in message for message in warnings(damaged))
    assert ranks.steps(damaged.output)[-2:] == ranks.steps(undisturbed.output)[-2:]
    assert ranks.status(damaged.output)["state"] == "done"
