"""`talaria run` on three sources and a Llama with its own chat template: held-out loss by source in the metrics, MLflow and the
model card, and a model that is prompted as it was trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from talaria.cli import stage_commands  # noqa: F401 (declares the commands)
from talaria.cli.app import app
from typer.testing import CliRunner

from tests.tokenization.chat_templates import FAMILIES, LLAMA, write_tokenizer
from tests.train.tiny_models import save_tiny


def source(seed: int, **more: object) -> dict[str, object]:
    return {"download": {"source": "sample", "rows": 60, "seed": seed}, **more}


def test_three_sources_are_trained_and_measured_each_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(FAMILIES["llama"], tmp_path / "llama")
    save_tiny(tmp_path / "llama", "llama", vocab_size=768, num_hidden_layers=1)
    config = {
        "name": "mixed",
        "sources": {"plain": source(0, held_out=0.2), "twice": source(1, repeat=2), "exam": source(2, held_out=1)},
        "base": {"source": "local", "path": str(tmp_path / "llama")},
        "tokenize": {"template": "own"},
        "train": {"num_processes": 1, "max_steps": 2, "eval_every": 2, "precision": "fp32", "global_batch": 8},
        "evaluate": {"prompts": 1, "max_new_tokens": 1},
    }
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["run", "mixed.yaml", "--store", "store", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    held_out = {name: counts["held_out"] for name, counts in facts["convert"]["sources"].items()}
    assert held_out["twice"] == 0 < held_out["plain"] < held_out["exam"] == 60
    assert facts["tokenize"]["conversations"]["validation"] == facts["evaluate"]["heldout_conversations"]

    [training] = (tmp_path / "store" / "train").iterdir()
    evaluation = json.loads((training / "evals.jsonl").read_text().splitlines()[-1])
    assert {name for name in evaluation if name.startswith("loss/")} == {"loss/plain", "loss/exam"}
    low, high = sorted([evaluation["loss/plain"], evaluation["loss/exam"]])
    assert low < evaluation["loss"] < high
    assert math.isclose(facts["evaluate"]["heldout_loss/exam"], evaluation["loss/exam"], rel_tol=1e-5)

    from mlflow import MlflowClient
    from talaria.tracking.mlflow_client import tracking_uri

    client = MlflowClient(tracking_uri(tmp_path / "store"))
    metrics = client.get_run(facts["register"]["run_id"]).data.metrics
    assert metrics["heldout_loss/plain"] == evaluation["loss/plain"]
    assert math.isclose(metrics["eval_loss/exam"], evaluation["loss/exam"], rel_tol=1e-5)
    assert metrics["eval_base_loss/exam"] > 0
    version = client.get_model_version("mixed", facts["register"]["candidate"])
    before, after = metrics["eval_base_loss/exam"], metrics["eval_loss/exam"]
    assert f"held-out loss, exam | {before:.4f} | {after:.4f} |" in version.description
    twice = facts["convert"]["sources"]["twice"]
    assert f"- twice: {twice['train']} rows to train ({twice['chosen']} chosen), 0 held out" in version.description
    assert twice["train"] == 2 * twice["chosen"]

    assert facts["tokenize"]["begins_with"].startswith("<|begin_of_text|><|start_header_id|>system")
    assert "Prompts are made by the chat template saved beside the weights, the base tokenizer's own." in version.description
    model = training / "model"
    assert (model / "chat_template.jinja").read_text() == LLAMA
    end = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    stop = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    assert {token["id"] for token in stop if token["content"] == "<|eot_id|>"} <= set(end if isinstance(end, list) else [end])
