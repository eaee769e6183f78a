"""The wheel alone, in an environment and a folder where nothing else of this repository is (`make test-wheel`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import talaria

REPOSITORY = Path(__file__).parents[2]
IN_SOMEBODY_ELSES_AIRFLOW = """
import json, sys
from airflow.utils.db import initdb
initdb()
from airflow import plugins_manager
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
names = [plugin.name for plugin in plugins_manager._get_plugins()[0]]
print("FOUND", json.dumps([sorted(bag.dags), bag.import_errors, names]))
"""
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(1200)]


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """The command's output; the repository is not on its path, and no setting of ours is in its environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "TALARIA", "MLFLOW", "PYTHON"))}
    done = subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive that is built first, as an index has them."""
    folder = tmp_path_factory.mktemp("dist")
    sys.path.insert(0, str(REPOSITORY / "tools"))
    import install

    run([install.find_uv(os.environ), "build", "--quiet", "--out-dir", folder, REPOSITORY], folder, **install.pip_settings())
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The locked versions of what `[train,airflow]` wants, and the wheel."""
    import install

    folder = tmp_path_factory.mktemp("environment") / "venv"
    settings = {**install.pip_settings(), **os.environ}
    uv = install.find_uv(settings)
    install.run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], settings)
    install.install(uv, folder, {"train", "airflow"}, False, settings)
    install.run([uv, "pip", "uninstall", "--quiet", "--python", str(folder), "talaria"], settings)
    extras = f"talaria[train,airflow] @ file://{wheel}"
    install.run([uv, "pip", "install", "--quiet", "--offline", "--python", str(folder), extras], settings)
    return folder / "bin"


def test_the_wheel_has_what_it_needs_and_no_more(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "configs/tiny.yaml",
        "configs/tiny-tasks.jsonl",
        "configs/tiny-tools.jsonl",
        "configs/qwen3-4b-base.yaml",
        "base_model/random_chat_template.jinja",
    ):
        assert f"talaria/{name}" in names
    for name in ("py.typed", "monitor/static/index.html", "monitor/static/vendor/uPlot.LICENSE"):
        assert f"talaria_airflow/{name}" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"talaria", "talaria_airflow"}


def test_there_is_one_version() -> None:
    assert tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"] == talaria.__version__


def test_talaria_runs_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    assert run([environment / "talaria", "--version"], tmp_path) == f"talaria {talaria.__version__}\n"
    chosen = ("download.rows=400", "download.tool_rows=20", "train.max_steps=4", "evaluate.prompts=4")
    short = [word for one in chosen for word in ("--set", one)]
    told = json.loads(run([environment / "talaria", "run", "tiny", *short, "--json"], tmp_path))
    assert told["train"]["steps"] == 4
    assert told["promote"]["champion"]


def test_the_plugin_and_the_dags_load_in_somebody_elses_airflow(environment: Path, tmp_path: Path) -> None:
    home = tmp_path / "airflow"
    (home / "dags").mkdir(parents=True)
    run([environment / "talaria", "airflow", "dags", "--install", home / "dags"], tmp_path)
    settings = {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False", "PATH": f"{environment}:{os.environ['PATH']}"}
    said = run([environment / "python", "-c", IN_SOMEBODY_ELSES_AIRFLOW, home / "dags"], tmp_path, **settings)
    dags, errors, plugins = json.loads(next(line for line in said.splitlines() if line.startswith("FOUND "))[6:])
    assert errors == {}
    assert {"rollback", "sft"} <= set(dags)
    assert "talaria" in plugins
