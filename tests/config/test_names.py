"""Names that MLflow or a folder would refuse after the training are refused when the configuration is read."""

from __future__ import annotations

from typing import Any

import pytest
from talaria.common.errors import ConfigError
from talaria.config.load import parse


def config(**registry: Any) -> Any:
    return parse({"name": "tiny", "registry": registry}, "test")


@pytest.mark.parametrize(
    ("setting", "value", "nearest"),
    [
        ("model", "a/b", "a-b"),
        ("model", "../../x", "x"),
        ("model", "o'brien", "o-brien"),
        ("model", 'say "hi"', "say -hi"),
        ("model", "a:b%c", "a-b-c"),
        ("model", "line\nbreak", "line-break"),
        ("model", " padded ", "padded"),
        ("model", "", "talaria"),
        ("model", "x" * 300, "x" * 200),
        ("experiment", "../../escaped", "escaped"),
        ("experiment", "/etc/passwd", "etc-passwd"),
        ("experiment", "a\\b", "a-b"),
        ("experiment", "..", "talaria"),
        ("experiment", ".hidden", "hidden"),
        ("experiment", "x" * 600, "x" * 200),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_with_the_nearest_that_can(setting: str, value: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=rf"registry\.{setting}") as caught:
        config(**{setting: value})
    assert str(caught.value).count("\n") == 0
    assert f"for example {nearest[:60]!r}"[:-1] in str(caught.value)
    assert getattr(config(**{setting: nearest}).registry, setting) == nearest


def test_a_name_that_is_too_long_is_refused_for_the_run_too() -> None:
    with pytest.raises(ConfigError, match=r"name: .* at most 200 bytes"):
        parse({"name": "x" * 300}, "test")


@pytest.mark.parametrize("value", ["qwen3-4b", "Größe 7 (Ann's)".replace("'", ""), "v1.2"])
def test_other_names_are_taken_as_they_are(value: str) -> None:
    assert config(experiment=value).registry.experiment == value


def test_dots_become_dashes_in_the_models_name_and_that_is_said() -> None:
    dotted = parse({"name": "qwen3-1.7b-sft"}, "test")
    assert dotted.registered_name == "qwen3-1-7b-sft"
    assert "'qwen3-1-7b-sft'" in str(dotted.renamed)
    assert config(model="a.b").registered_name == "a-b"
    assert config().renamed is None
