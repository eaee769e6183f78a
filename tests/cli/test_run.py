"""`talaria run`, as a user types it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from talaria.cli import model_commands, stage_commands  # noqa: F401 (declare the commands)
from talaria.cli.app import app
from typer.testing import CliRunner

from tests.support import working_folder

TALARIA = Path(sys.executable).with_name("talaria")
TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"
SMALLER = {
    "download.rows": 80,
    "download.tool_rows": 20,
    "base.vocab_size": 400,
    "train.num_processes": 1,
    "train.max_steps": 2,
    "train.keep_epochs": "false",
    "evaluate.prompts": 2,
    "evaluate.max_new_tokens": 2,
}


def test_it_finishes_beside_files_named_like_modules_and_a_prune(tmp_path: Path) -> None:
    working_folder.fill(tmp_path)
    words = [word for name, value in SMALLER.items() for word in ("--set", f"{name}={value}")]
    command, store = [TALARIA, "run", TINY, *words, "--json"], tmp_path / ".talaria" / "store"
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not list((store / ".work").glob("train-*/")):
            time.sleep(0.05)
        pruned = CliRunner().invoke(app, ["store", "prune", "--days", "0", "--store", str(store)])
        out, err = running.communicate()
    assert running.returncode == 0, err
    assert "removed" not in pruned.stdout
    for stage in ("download", "convert", "base", "tokenize", "report"):
        assert f"kept {store / stage}/" in pruned.stderr
    facts = json.loads(out)
    assert facts["train"]["steps"] == 2
    assert facts["register"]["model"] == "tiny"
    assert facts["promote"]["version"] == facts["register"]["candidate"]

    with contextlib.chdir(tmp_path):
        again = CliRunner().invoke(app, ["run", str(TINY), *words])
    shown = ["base", "held-out", "exact", "task", "task", "Model", "talaria"]
    assert [line.split()[0] for line in again.stdout.splitlines()] == shown, again.output
    assert again.stderr.count(" reused ") == 8

    # What `talaria plan` says of the same run now: all is there. Of a longer one: what it takes, by the speed of this one.
    plan = plan_of(tmp_path, *words)
    assert set(plan["stages"].values()) == {"reused"}
    assert (plan["training"]["hours"], plan["training"]["cost"], plan["problems"]) == (0.0, None, [])
    longer = plan_of(tmp_path, *words, "--set", "train.max_steps=5")
    assert [name for name, state in longer["stages"].items() if state == "runs"] == ["train", "evaluate"]
    told = longer["training"]
    (trained,) = (tmp_path / ".talaria" / "store" / "train").iterdir()
    assert told["conversations"] == facts["tokenize"]["conversations"]["train"]
    assert told["speed_from"] == f"training {trained.name[:8]} on 1 ranks on CPU"
    assert told["hours"] == told["trained_tokens"] / told["tokens_per_second"] / 3600 > 0
    assert told["gpu_hours"] == 0


def plan_of(folder: Path, *words: str) -> dict[str, Any]:
    """What `talaria plan` says in that folder; in this process, which has imported everything."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, ["plan", str(TINY), *words, "--json"])
    assert done.exit_code == 0, done.output
    plan: dict[str, Any] = json.loads(done.stdout)
    return plan
