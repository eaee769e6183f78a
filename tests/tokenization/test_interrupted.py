"""Killed, out of disk or told to stop: the whole folder or nothing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from talaria.config.data_settings import Tokenize
from talaria.tokenization.stage import tokenize

from tests.support.conversations import numbered, write_parquet

# `talaria` in a process that stops where all shards are written and nothing is in place, and says so.
PAUSED = """
import sys, time
from talaria.tokenization import stage
def pause(*_):
    print("written", flush=True)
    time.sleep(600)
stage.merge = pause
from talaria.cli import main
main()
"""
# `talaria` in a process that may write no file larger than 100 kB: what the kernel says then is what it says of a full disk.
CRAMPED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from talaria.cli import main
main()
"""


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    return write_parquet(tmp_path / "messages.parquet", numbered(2000))


def start(script: str, parquet: Path, small_tokenizer: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, "tokenize", "--input", str(parquet), "--tokenizer", str(small_tokenizer)]
    command += ["--output", str(parquet.with_name("tokens"))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_sigterm_leaves_nothing(parquet: Path, small_tokenizer: Path) -> None:
    process = start(PAUSED, parquet, small_tokenizer)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert len(names(parquet.parent)) == 2
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert names(parquet.parent) == ["messages.parquet"]


def test_sigkill_leaves_no_output_and_the_next_run_sweeps(parquet: Path, small_tokenizer: Path) -> None:
    process = start(PAUSED, parquet, small_tokenizer)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    process.kill()
    process.communicate(timeout=60)
    assert not parquet.with_name("tokens").exists()
    tokenize(parquet, small_tokenizer, parquet.with_name("tokens"), Tokenize())
    assert names(parquet.parent) == ["messages.parquet", "tokens"]


def test_a_run_leaves_the_work_of_a_living_one_alone(parquet: Path, small_tokenizer: Path) -> None:
    process = start(PAUSED, parquet, small_tokenizer)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    try:
        (living,) = set(names(parquet.parent)) - {"messages.parquet"}
        tokenize(parquet, small_tokenizer, parquet.with_name("tokens"), Tokenize())
        assert living in names(parquet.parent)
    finally:
        process.kill()
        process.communicate(timeout=60)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(parquet: Path, small_tokenizer: Path) -> None:
    process = start(CRAMPED, parquet, small_tokenizer)
    _, error = process.communicate(timeout=60)
    output = parquet.with_name("tokens")
    assert process.returncode == 2
    assert error == f"talaria: {output}: the disk is full; free space or choose another place. Nothing was written.\n"
    assert names(parquet.parent) == ["messages.parquet"]
