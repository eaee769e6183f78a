"""What a process that tokenises leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.conversations import numbered, write_parquet

SCRIPT = """
import json, os, sys
from pathlib import Path
from talaria.config.data_settings import Tokenize
from talaria.tokenization.stage import tokenize
settings = Tokenize(backend="fastokens", validation_fraction=0.1, max_tokens=400)
tokenize(*map(Path, sys.argv[1:]), settings)
threads = [Path("/proc/self/task", task, "comm").read_text().strip() for task in os.listdir("/proc/self/task")]
print(json.dumps({"modules": list(sys.modules), "threads": threads}))
"""


@pytest.fixture(scope="module")
def process(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("process")
    parquet = write_parquet(folder / "messages.parquet", numbered(5000))
    command = [sys.executable, "-c", SCRIPT, str(parquet), str(small_tokenizer), str(folder / "tokens")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_pandas_is_not_imported(process: dict[str, Any]) -> None:
    assert "pyarrow" in process["modules"]
    assert "pandas" not in process["modules"]


def test_the_encoder_starts_no_threads_of_its_own(process: dict[str, Any]) -> None:
    """Ours encode already: more of them would only have colder caches (two cores show it, one cannot)."""
    assert [name for name in process["threads"] if name.startswith("fastokens")] == []
