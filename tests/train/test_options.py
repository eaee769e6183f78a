"""Settings that change what a run trains or leaves behind: frozen parameters, other losses, a trace, mirrors of the metrics."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from talaria.common.errors import ConfigError
from talaria.common.user_code import ALLOW
from talaria.config.train_settings import Train
from talaria.runs.identity import run_identity
from talaria.train.model.causal_lm import ModelOptions, sum_loss
from talaria.train.model.loading import load_model
from talaria.train.model.loss import token_loss
from talaria.train.telemetry.mirrors import Mirrors, require_installed
from talaria.train.train_state import TrainJob

from tests.train import ranks
from tests.train.tiny_models import batch_of, conversations, save_tiny


def test_a_configuration_without_the_new_settings_keeps_its_key() -> None:
    later = {"schedule", "decay_fraction", "loss", "trainable", "freeze"}
    assert not later & Train().key_fields().keys()
    assert Train(schedule="wsd").key_fields()["schedule"] == "wsd"
    assert Train(freeze=["*norm*"]).key_fields()["freeze"] == ["*norm*"]


@pytest.mark.usefixtures("no_room_for_whole_weights")
@pytest.mark.parametrize(("size", "sharding"), [(1, "auto"), (2, "shard")])
def test_frozen_parameters_stay_and_the_others_train(
    job: Callable[..., TrainJob], folders: dict[str, Path], size: int, sharding: str
) -> None:
    frozen = job(max_steps=3, freeze=["*embed_tokens*", "*.layers.0.*"], sharding=sharding, precision="mixed")
    ranks.run(frozen, size)
    before, after = (load_file(folder / "model.safetensors") for folder in (folders["base"], frozen.output / "model"))
    for name, tensor in before.items():
        stays = "embed_tokens" in name or ".layers.0." in name
        assert torch.equal(tensor, after[name]) == stays, name


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"freeze": ["*.layres.*"]}, r"train\.freeze: '\*\.layres\.\*' matches no parameter"),
        ({"trainable": ["lm_haed*"]}, r"train\.trainable: 'lm_haed\*' matches no parameter"),
        ({"freeze": ["*"]}, "leave no parameter to train"),
    ],
)
def test_patterns_that_make_no_sense(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_model(save_tiny(tmp_path), ModelOptions("fp32", **options), "cpu")


def test_adapters_and_patterns_exclude_each_other() -> None:
    with pytest.raises(ValidationError, match=r"no place beside train\.lora\.rank"):
        Train(lora={"rank": 4}, freeze=["*norm*"])  # type: ignore[arg-type]


def test_held_out_losses_are_nll_whatever_is_trained(tmp_path: Path) -> None:
    batch = batch_of(conversations([8, 13]))
    nll, dft = (load_model(save_tiny(tmp_path), ModelOptions("fp32", loss=name), "cpu") for name in ("nll", "dft"))
    assert torch.equal(sum_loss(dft.eval(), batch), sum_loss(nll.eval(), batch))
    assert sum_loss(dft.train(), batch) < sum_loss(nll.train(), batch)


@pytest.fixture
def own_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_losses.py").write_text(
        "from torch.nn.functional import cross_entropy\n\n\ndef halved(logits, targets):\n"
        "    return 0.5 * cross_entropy(logits, targets, reduction='none')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_losses", raising=False)
    return "my_losses:halved"


def test_a_loss_of_ones_own(job: Callable[..., TrainJob], own_loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"set {ALLOW}=1"):
        token_loss(own_loss)
    monkeypatch.setenv(ALLOW, "1")
    plain, own = job("plain", max_steps=2), job("own", max_steps=2, loss=own_loss)
    ranks.run(plain)
    ranks.run(own)
    assert ranks.steps(own.output)[0]["loss"] == pytest.approx(0.5 * ranks.steps(plain.output)[0]["loss"], rel=1e-6)
    identity = run_identity(own.config, own.tokens, own.base, own.output)
    Path(sys.modules["my_losses"].__file__ or "").write_text("def halved(logits, targets): ...\n")
    assert run_identity(own.config, own.tokens, own.base, own.output) != identity, "another loss is another run"


def test_a_loss_must_be_known() -> None:
    with pytest.raises(ValidationError, match="should be nll, dft or 'module:name'"):
        Train(loss="nnl")


def test_a_trace_of_some_steps(job: Callable[..., TrainJob]) -> None:
    traced = job(max_steps=6, profile_steps=2)
    ranks.run(traced)
    (trace,) = (traced.output / "profile").iterdir()
    assert trace.name == "until-step-00000004.json"
    names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert "aten::mm" in names


def test_a_service_whose_package_is_missing() -> None:
    with pytest.raises(ConfigError, match="tensorboard needs the package tensorboard, which is not installed"):
        require_installed(["tensorboard"])


def test_metrics_go_to_a_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for wandb's three calls that accelerate makes."""
    logged: list[tuple[dict[str, Any], int]] = []
    ended: list[str] = []
    run = types.SimpleNamespace(
        log=lambda values, step=None, **how: logged.append((values, step)), finish=lambda: ended.append("finish")
    )
    wandb = types.ModuleType("wandb")
    wandb.init = lambda project, **how: run  # type: ignore[attr-defined]
    wandb.config = types.SimpleNamespace(update=lambda values, **how: logged.append((values, -1)))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    mirrors = Mirrors(["wandb"], "small", tmp_path, {"train.lr": 0.1, "train.lora.targets": ["q_proj"]})
    mirrors.log({"step": 3, "loss": 2.5, "mfu": None})
    mirrors.log({"step": 3, "loss": 2.0}, "held_out")
    mirrors.close()
    assert logged[0] == ({"train.lr": 0.1, "train.lora.targets": "['q_proj']"}, -1)
    assert logged[1:] == [({"train/loss": 2.5}, 3), ({"held_out/loss": 2.0}, 3)]
    assert ended == ["finish"]
