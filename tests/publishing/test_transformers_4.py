"""A published folder is the same model in transformers 4.57 as in the version that it was trained with (`make test-wheel`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from talaria.base_model.families import FAMILIES
from talaria.base_model.inspection import read_json
from talaria.publishing.both_forms import tokenizer_config
from talaria.publishing.publication import rotary_forms

from tests.publishing.conftest import FORMER, talaria
from tests.train.family_proof import save_family

READER = Path(__file__).with_name("read_folder.py")
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]


def read(folder: Path, out: Path, path: Path | None = None) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run([sys.executable, READER, folder, out], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def assert_both_read_the_same(folder: Path, former: Path, tmp_path: Path) -> None:
    now, before = read(folder, tmp_path / "now.json"), read(folder, tmp_path / "before.json", former)
    assert (now.pop("version")[0], before.pop("version")) == ("5", FORMER)
    logits, expected = before.pop("logits"), now.pop("logits")
    assert before == now, "ids, prompts, the greedy answer, the ends of an answer"
    assert max(map(abs, expected)) > 0.1
    assert max(abs(a - b) for a, b in zip(logits, expected, strict=True)) < 1e-5


def test_a_published_version_reads_the_same(published_model: str, store: Path, former: Path, tmp_path: Path) -> None:
    done = talaria("publish", published_model, "--to", f"folder:{tmp_path / 'out'}", "--store", store)
    assert done.returncode == 0, done.stderr
    assert_both_read_the_same(tmp_path / "out", former, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_that_version_5_saved_reads_the_same(folders: dict[str, Path], former: Path, tmp_path: Path, family: str) -> None:
    from transformers import AutoTokenizer

    folder = save_family(family, tmp_path / "model", folders["base"])
    AutoTokenizer.from_pretrained(folders["base"]).save_pretrained(folder)
    shutil.copyfile(folders["base"] / "chat_template.jinja", folder / "chat_template.jinja")
    settings = read_json(folder / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "TokenizersBackend"
    assert "rope_theta" not in read_json(folder / "config.json"), "what version 4 reads is not there"
    (folder / "config.json").write_text(json.dumps(rotary_forms(folder)))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(settings)))
    assert_both_read_the_same(folder, former, tmp_path)
