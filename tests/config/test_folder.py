"""A configuration is named by its path, or by one word where Talaria ships it or the deployment has it."""

from __future__ import annotations

from pathlib import Path

import pytest
import talaria
from talaria.common.errors import ConfigError
from talaria.config.folder import config_file, config_folder, config_names, find_config

SHIPPED = Path(__file__).parents[2] / "configs"


def test_a_word_is_a_shipped_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("tiny")) == SHIPPED / "tiny.yaml"
    assert config_names() == sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("tiny.yaml", "configs/tiny", "./missing.yml", "/somewhere/tiny"):
        assert find_config(Path(path)) == Path(path)
    (tmp_path / "tiny").write_text("name: mine\n")
    assert find_config(Path("tiny")) == Path("tiny")


def test_the_deployments_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours.yaml").write_text("name: ours\n")
    monkeypatch.setenv("TALARIA_CONFIGS", str(tmp_path))
    assert find_config(Path("ours")) == tmp_path / "ours.yaml"
    with pytest.raises(ConfigError, match=r"unknown configuration 'tiny'; .* has ours\."):
        find_config(Path("tiny"))


def test_an_installed_package_has_its_configurations_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site-packages" / "talaria" / "configs").mkdir(parents=True)
    monkeypatch.setattr(talaria, "__file__", str(tmp_path / "site-packages" / "talaria" / "__init__.py"))
    assert config_folder() == tmp_path / "site-packages" / "talaria" / "configs"


@pytest.mark.parametrize("name", ["../tiny", "tiny.yaml", "/etc/passwd", ""])
def test_a_name_never_leaves_the_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown configuration"):
        config_file(name)
