"""`make` installs by uv as pip is told to on this machine, and without CUDA where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(REPOSITORY / "tools"))
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name == "TORCH":
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    import install

    return install


def test_pips_environment_counts_for_uv(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "INDEX_URL": "https://mirror.example/simple",
        "EXTRA_INDEX_URL": "https://one.example/simple https://two.example/simple",
        "FIND_LINKS": "/opt/wheels /opt/more",
        "CERT": "/etc/ssl/own.pem",
        "DEFAULT_TIMEOUT": "180",
        "DISABLE_PIP_VERSION_CHECK": "1",
    }.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    assert install.pip_settings() == {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/opt/wheels,/opt/more",
        "SSL_CERT_FILE": "/etc/ssl/own.pem",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_pips_files_count_and_its_environment_wins(install: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://file.example/simple\nfind-links = /a\n    /b\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://environment.example/simple")
    found = install.pip_settings()
    assert found["UV_DEFAULT_INDEX"] == "https://environment.example/simple"
    assert found["UV_FIND_LINKS"] == "/a,/b"


@pytest.mark.parametrize(("said", "cuda"), [("cpu", False), ("cuda", True)])
def test_the_build_of_torch_can_be_chosen(install: Any, said: str, cuda: bool) -> None:
    assert install.wants_cuda({"TORCH": said}) is cuda


def test_an_unknown_build_of_torch_is_refused(install: Any) -> None:
    with pytest.raises(install.InstallError, match="TORCH=rocm: expected auto, cpu or cuda"):
        install.wants_cuda({"TORCH": "rocm"})


@pytest.mark.parametrize("cuda", [False, True])
def test_a_machine_without_a_gpu_downloads_nothing_of_cuda(
    install: Any, cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv's own export of the lock; what would be installed is not."""
    uv, asked, really = install.find_uv(os.environ), [], install.run
    monkeypatch.setattr(install, "run", lambda command, env: asked.append(command) if "sync" in command else really(command, env))
    install.install(uv, tmp_path, {"train", "airflow", *(["gpu"] if cuda else [])}, cuda, os.environ)
    locked = (tmp_path / "locked.txt").read_text()
    names = {line.split("==")[0] for line in locked.splitlines() if line[:1].isalpha()}
    assert {"apache-airflow", "mlflow", "transformers"} <= names
    assert "--hash=sha256:" in locked
    assert {"torch", "triton", "nvidia-cudnn-cu13", "nvidia-cudnn-frontend"} <= names if cuda else True
    assert cuda or not [name for name in names if name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))]
    assert [str(tmp_path / "torch.txt") in command for command in asked] == [not cuda]
    assert (tmp_path / "torch.txt").read_text() == ("" if cuda else f"torch=={version('torch')}+cpu\n")


def test_pips_constraints_are_the_locks_versions() -> None:
    lines = (REPOSITORY / "requirements.lock").read_text().splitlines()
    pinned = {tuple(line.partition(" ;")[0].split("==")) for line in lines if not line.startswith("#")}
    assert pinned == {(package["name"], package["version"]) for package in locked() if package["name"] != "talaria"}


def test_the_lock_names_only_public_addresses() -> None:
    text = (REPOSITORY / "uv.lock").read_text()
    assert {package["source"].get("registry") for package in locked()} == {"https://pypi.org/simple", None}
    assert "file:" not in text
    assert text.count('url = "') == text.count('url = "https://files.pythonhosted.org/')


def test_a_failure_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "install.py"), str(tmp_path / "venv"), "train"]
    done = subprocess.run(command, env=os.environ | {"TORCH": "rocm"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "talaria: TORCH=rocm: expected auto, cpu or cuda.\n")
    assert not (tmp_path / "venv").exists()


def locked() -> list[dict[str, Any]]:
    return list(tomllib.loads((REPOSITORY / "uv.lock").read_text())["package"])


def version(name: str) -> str:
    return next(package["version"] for package in locked() if package["name"] == name)
