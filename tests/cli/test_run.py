"""`talaria run`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import working_folder

TALARIA = Path(sys.executable).with_name("talaria")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for each other crawl on a busy machine
TINY = Path(__file__).parents[2] / "configs" / "tiny.yaml"
SMALLER = {
    "download.rows": 80,
    "base.vocab_size": 400,
    "train.num_processes": 1,
    "train.max_steps": 2,
    "train.keep_epochs": "false",
    "evaluate.prompts": 2,
    "evaluate.max_new_tokens": 2,
}


def test_it_finishes_in_a_folder_whose_files_are_named_like_modules(tmp_path: Path) -> None:
    working_folder.fill(tmp_path)
    words = [word for name, value in SMALLER.items() for word in ("--set", f"{name}={value}")]
    done = subprocess.run([TALARIA, "run", TINY, *words, "--json"], cwd=tmp_path, env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["train"]["steps"] == 2
    assert facts["register"]["model"] == "tiny"
    assert facts["promote"]["version"] == facts["register"]["candidate"]
