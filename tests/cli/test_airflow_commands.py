"""`talaria airflow dags` prints and installs the repository's own DAG files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from talaria.cli.airflow_commands import FILES

DAGS = Path(__file__).parents[2] / "dags"


def dags(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "talaria.cli", "airflow", "dags", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_files_are_those_of_the_repository() -> None:
    assert {path.stem: path.read_text() for path in DAGS.glob("*.py")} == FILES


def test_they_are_printed() -> None:
    printed = dags().stdout
    for name, text in FILES.items():
        assert f"# talaria_{name}.py\n{text}" in printed


def test_they_are_installed_once_and_nothing_is_overwritten(tmp_path: Path) -> None:
    assert dags("--install", tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"talaria_{name}.py" for name in FILES}
    assert dags("--install", tmp_path).returncode == 0
    (tmp_path / "talaria_sft.py").write_text("mine\n")
    refused = dags("--install", tmp_path)
    assert refused.returncode == 2
    assert "talaria_sft.py: is another file already" in refused.stderr
    assert (tmp_path / "talaria_sft.py").read_text() == "mine\n"


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    refused = dags("--install", tmp_path / "nowhere")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
