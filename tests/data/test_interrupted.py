"""A convert that is killed, or that runs out of disk, leaves nothing; what a killed one left is cleared by the next."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from talaria.config.data_settings import Convert
from talaria.data.convert import convert
from talaria.data.synthetic.generator import write_sample

CONVERT = "import sys; from talaria.cli import main; sys.argv = ['talaria', 'convert', '--input', *sys.argv[1:]]; main()"
ROWS = 40_000
PROGRESS = re.compile(r"convert: [\d,]+ rows")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several chunks, so that there is a time at which some are written and some are not."""
    path = tmp_path_factory.mktemp("source") / "rows.json"
    write_sample(path, ROWS, seed=0)
    return path


def start(source: Path, output: Path, **how: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CONVERT, str(source), "--output", str(output)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, **how)  # type: ignore[call-overload]


def the_sentence(errors: str) -> str:
    """What is said beside progress, of which a slow machine shows a line every ten seconds: one line, and the last."""
    *before, last = errors.splitlines()
    assert all(PROGRESS.fullmatch(line) for line in before), errors
    return last


def test_a_killed_convert_leaves_nothing_at_its_output(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "messages.parquet"
    process = start(source, output)
    while not list(output.parent.glob(".*/*.parquet")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert process.stderr
    process.stderr.close()
    assert not output.exists()
    left = list(output.parent.iterdir())
    assert len(left) == 1
    convert(source, output, Convert(rows=10))
    assert [path.name for path in output.parent.iterdir()] == ["messages.parquet"]


def test_a_convert_does_not_touch_one_that_still_runs(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "messages.parquet"
    process = start(source, output)
    while not list(tmp_path.glob(".*/*.parquet")) and process.poll() is None:
        time.sleep(0.001)
    convert(source, output, Convert(rows=10))
    assert process.wait() == 0
    assert process.stderr
    process.stderr.close()
    assert pq.read_metadata(output).num_rows in (10, ROWS), "one of the two, whole"
    assert [path.name for path in tmp_path.iterdir()] == ["messages.parquet"]


def test_an_older_output_stays_until_the_new_one_is_whole(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "messages.parquet"
    convert(source, output, Convert(rows=10))
    bad = tmp_path / "bad.json"
    bad.write_text('[{"conversations": [{"from": "x", "value": "y"}]}]')
    with pytest.raises(ValueError, match="unknown role"):
        convert(bad, output, Convert())
    assert pq.read_metadata(output).num_rows == 10


def test_a_full_disk_gives_one_sentence_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """A limit on the size of a file stands for a disk without room: the same error at the same place."""
    output = tmp_path / "messages.parquet"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = start(source, output, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert f"{output}: the disk is full" in the_sentence(errors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full_indeed(source: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        process = start(source, disk / "messages.parquet")
        _, errors = process.communicate()
        assert process.returncode == 2
        assert "the disk is full" in the_sentence(errors)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
