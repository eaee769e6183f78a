"""`talaria plan`: what a run would take, from numbers that are known, and every reason for which it would fail, at once."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from talaria.base_model.model_size import ModelSize, size_of_folder, size_of_random
from talaria.cli import stage_commands  # noqa: F401
from talaria.cli.app import app
from talaria.common.errors import Unavailable, UserError
from talaria.config.load import parse
from talaria.config.schema import Config
from talaria.data import source_sample
from talaria.data.convert import convert
from talaria.data.synthetic.generator import generate
from talaria.store.store import Store
from talaria.tokenization.stage import tokenize
from talaria.workflow.forecast import disk, ranks, training
from talaria.workflow.forecast.base import BaseModel
from talaria.workflow.forecast.forecast import forecast, refuse
from talaria.workflow.forecast.lines import lines
from typer.testing import CliRunner

from tests.support import tiny_pipeline

QWEN3_4B = BaseModel("Qwen/Qwen3-4B-Base", "qwen3", ModelSize(4_022_468_096, 8_044_936_192), {"tie_word_embeddings": True})


@pytest.fixture(scope="module")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Made once: it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, mlflow_database: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_database)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(**sections: Any) -> Config:
    return parse({"name": "planned", **sections}, "test")


def test_everything_that_would_stop_a_run_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(
        yaml.safe_dump(
            {
                "download": {"source": "local", "path": str(tmp_path / "absent.json")},
                "base": {"source": "local", "path": str(tmp_path / "nowhere")},
                "tokenize": {"template": str(tmp_path / "absent.jinja")},
                "convert": {"function": "own:code"},
                "train": {"keep_best": True, "num_processes": 1000, "report_to": ["wandb"]},
            }
        )
    )
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "wrong.yaml"), "--store", str(tmp_path / "store")])
    assert isinstance(done.exception, UserError)
    told = str(done.exception)
    assert told.startswith("7 things would stop this run. ")
    for part in ("absent.json", "nowhere", "absent.jinja", "convert.function", "train.keep_best", "train.num_processes is 1000"):
        assert part in told
    assert "train.report_to: wandb needs the package wandb" in told
    assert not (tmp_path / "store").exists()


def test_a_run_is_refused_by_the_same_sentences_before_a_stage_begins(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("{download: {source: sample}, base: {source: local, path: gone}, train: {patience: 2}}")
    done = CliRunner().invoke(app, ["run", str(wrong), "--store", str(tmp_path / "store")])
    assert str(done.exception).startswith("2 things would stop this run. gone: no such folder")
    assert not (tmp_path / "store" / "download").exists()


def test_ranks_that_cannot_share_conversations_are_a_problem(tmp_path: Path) -> None:
    train = {"num_processes": 3, "context_parallel_size": 2}
    (problem,) = forecast(tiny_pipeline.config(train=train), Store(tmp_path), uri=None)["problems"]
    assert problem.startswith("train.context_parallel_size is 2, but 3 ranks cannot be split into groups of so many;")


def test_what_may_be_over_at_another_attempt_is_told_as_such(tmp_path: Path, mlflow_database: str) -> None:
    facts = forecast(config(), Store(tmp_path), uri=mlflow_database)
    assert len(facts["problems"]) == 2  # the hub's data set and model, neither in the cache
    with pytest.raises(Unavailable):
        refuse(facts)


def test_mlflow_that_does_not_answer_is_a_problem(tmp_path: Path) -> None:
    facts = forecast(tiny_pipeline.config(), Store(tmp_path), uri="http://127.0.0.1:9")
    (problem,) = facts["problems"]
    assert problem.startswith("MLflow at http://127.0.0.1:9 does not answer.")


def test_numbers_of_qwen3_4b() -> None:
    settings = config(registry={"gpu_hour_price": 2.5}, train={"epochs": 2})
    data = {"conversations": 1_000_000, "tokens": 400_000_000}
    where = ranks.Place(ranks=8, gpus=8, device_bytes=80_000_000_000)
    speed = training._measured_speed(settings, QWEN3_4B, where)
    assert speed["tokens_per_second"] / 8 == pytest.approx(22_160, rel=0.03)  # docs/performance.md, by hand
    assert training._steps(settings, data) == {"steps": 15_625, "trained_tokens": 800_000_000}
    assert QWEN3_4B.size is not None
    assert QWEN3_4B.size.checkpoint_bytes(settings.train) == pytest.approx(48e9, rel=0.01)
    assert ranks.memory(settings, QWEN3_4B.size, where)["state_bytes"] == pytest.approx(8e9, rel=0.01)
    with pytest.raises(UserError, match=r"take 64\.4 GB on each of 1 ranks .* has 40\.0 GB; train on more GPUs"):
        ranks.require_memory(settings, ranks.memory(settings, QWEN3_4B.size, ranks.Place(1, 1, 40_000_000_000)))
    offloaded = config(train={"offload": "optimizer"})
    ranks.require_memory(offloaded, ranks.memory(offloaded, QWEN3_4B.size, ranks.Place(1, 1, 40_000_000_000)))


def test_a_disk_that_is_too_small_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_free", lambda folder: 100 * 10**9)
    settings = config(train={"epochs": 3, "keep_epochs": True})
    needed = disk.needed(settings, Store(tmp_path), {}, {"train": "runs", "base": "runs"}, QWEN3_4B, {"steps": None})
    assert {name: round(count / 1e9) for name, count in needed["parts"].items()} == {
        "base model": 8,
        "checkpoints (3)": 145,
        "models (4)": 32,
    }
    with pytest.raises(UserError, match=r"needs at least 185\.0 GB \(base model 8\.0 GB, .*\), and 100\.0 GB are free"):
        disk.require_room(needed)
    one = disk.needed(settings, Store(tmp_path), {}, {"train": "reused", "base": "reused"}, QWEN3_4B, {"steps": None})
    assert one["bytes"] == 0


def test_the_size_of_a_model_from_random_weights_is_known_before_it_is_made(tmp_path: Path) -> None:
    store = Store(tmp_path)
    settings = tiny_pipeline.config()
    made = tiny_pipeline.prepare(store, settings)["base"]
    rows = json.loads((made.path / "config.json").read_text())["vocab_size"]
    assert size_of_folder(made.path) == size_of_random(settings.base.model_copy(update={"vocab_size": rows}))
    assert size_of_folder(made.path).parameters == made.facts["parameters"]

    # the same as a folder of somebody's, with a tokenizer that lacks what is asked of it
    base = {"source": "local", "path": str(made.path)}
    facts = forecast(tiny_pipeline.config(base=base), store, uri=None)
    assert facts["base"]["parameters"] == made.facts["parameters"]
    assert facts["problems"] == []
    assert f"base      {made.path}: qwen3, {made.facts['parameters']:,} parameters" in "\n".join(lines(facts))
    bare = shutil.copytree(made.path, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (problem,) = forecast(tiny_pipeline.config(base=base | {"path": str(bare)}), store, uri=None)["problems"]
    assert "tokenizer.json: no such file" in problem


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_data_that_was_never_tokenised_is_estimated_from_its_first_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """The user's own file and model folder, before anything was made of them; then once they are converted."""
    monkeypatch.setattr(source_sample, "BYTES", 100_000)
    base = tiny_pipeline.prepare(Store(tmp_path / "other"), tiny_pipeline.config())["base"].path
    lines_ = "".join(json.dumps(row) + "\n" for row in generate(2000, 0)).encode()
    (data := tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")).write_bytes(gzip.compress(lines_) if packed else lines_)
    own = {"download": {"source": "local", "path": str(data)}, "base": {"source": "local", "path": str(base)}}
    settings = tiny_pipeline.config(**own, tokenize={"max_tokens": 512, "validation_fraction": 0.2})
    store = Store(tmp_path / "store")
    found = forecast(settings, store, uri=None)["training"]

    convert(data, tmp_path / "messages.parquet", settings.convert)
    made = tokenize(tmp_path / "messages.parquet", base, tmp_path / "tokens", settings.tokenize)
    assert found["tokens"] == pytest.approx(made["tokens"]["train"], rel=0.1)
    assert found["conversations"] == pytest.approx(made["conversations"]["train"], rel=0.1)
    assert found["trained_tokens"] == pytest.approx(found["tokens"] * settings.train.epochs, rel=0.01)
    told = "\n".join(lines(forecast(settings, store, uri=None)))
    assert f"data      about {found['conversations']:,} conversations, about {found['tokens']:,} tokens (estimated from" in told
    assert "tokens" not in forecast(settings, store, uri=None)["disk"]["parts"], "an estimate refuses nobody"


def test_base_of_another_family_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "mamba"}')
    facts = forecast(
        config(download={"source": "sample"}, base={"source": "local", "path": str(tmp_path / "base")}), Store(tmp_path), uri=None
    )
    assert any("model_type 'mamba' is not one of" in problem for problem in facts["problems"])
