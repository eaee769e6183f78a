"""A configuration file is read as YAML 1.2, and what could be meant in two ways is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from talaria.cli.app import app
from talaria.common.errors import ConfigError, UserError
from talaria.common.printable import printable
from talaria.config import load as settings


def load(tmp_path: Path, text: str, *overrides: str) -> settings.Config:
    (tmp_path / "file.yaml").write_text(text)
    return settings.load(tmp_path / "file.yaml", overrides)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "train: {lr: 1}\ntrain: {epochs: 2}",
            "at line 2: the key train is there twice, first at line 1; write what belongs to it once, in one place.",
        ),
        ("train:\n  epochs: 1\n  lr: 1.0e-5\n  lr: 1.0e-4", "line 4: the key lr is there twice, first at line 3;"),
        ("1: a\n0x1: b", "line 2: the key 1 is there twice"),
        ("a: &x [1]\nb: *x", "anchors and aliases (&, *) are not read at line 1; write the value out."),
        ("a: &x [*x]", "anchors and aliases"),
        ("train: !!int x", "tags (!) are not read at line 1"),
        ("train: !!python/object/apply:os.system [ls]", "tags (!) are not read"),
        ("a: 1\n---\nb: 2", "not valid YAML at line 2"),
        ("%YAML 1.1\n---\ntrain: {}", "is read as YAML 1.2"),
        ("[" * 5000, "is nested more than 20 levels deep at line 1."),
        ("x" * 1_000_001, "has 1,000,001 characters"),
        ("train: {epochs: " + "9" * 5000 + "}", "99999999999999999999 is no whole number."),
        ("train: {epochs: 0x_}", "0x_ is no whole number."),
        (
            "train: {epochs: 100000000000000000000}",
            "train.epochs: should be less than or equal to 100000, got 100000000000000000000.",
        ),
        ("train: {seed: 100000000000000000000}", "train.seed: should be less than or equal to 9007199254740991"),
        ("train: {epochs: true}", "train.epochs: should not be true or false, got true."),
        ("train: {epochs: yes}", "train.epochs: should be a valid integer"),
        ("train: {hang_timeout: .inf}", "train.hang_timeout: should be a finite number, got inf."),
        ("train: {lr: .inf}", "train.lr: should be a finite number, got inf."),
        ("train: {lr: .nan}", "train.lr: should be a finite number, got nan."),
        ("train: {lr: 1e999}", "train.lr: should be a finite number, got inf."),
        ("convert: {rows: 12:30:45}", "convert.rows: should be a valid integer"),
        ("convert: {rows: 2024-02-30}", "convert.rows: should be a valid integer"),
        ("convert: {rows: 2024-02-03}", "convert.rows: should be a valid integer"),
        ("train:", "train: should be a group of settings, got None."),
        ("1: 2", "1: a setting's name is text."),
        ("[1, 2]: 3", "(1, 2): a setting's name is text."),
        ('download: {files: "a\\0b"}', "download.files: should be text without control characters."),
        ('download: {files: "\\ud800"}', "download.files: should be a valid string"),
        ('"\\e[2J": 1', "unknown setting \\x1b[2J"),
        ("base: {path: " + "a" * 300 + "}", "base.path: should be a path that a file system can hold"),
        ("base: {shape: {num_key_value_heads: 3}}", "base.shape.num_key_value_heads has to divide"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert sentence in str(refused.value)
    assert str(refused.value).startswith(f"{tmp_path}/file.yaml: ")
    assert printable(str(refused.value)) == str(refused.value)
    assert len(str(refused.value)) < 400


def test_plain_words_and_numbers_mean_what_they_look_like(tmp_path: Path) -> None:
    config = load(tmp_path, "download: {files: yes, revision: 2024-02-30}\ntrain: {lr: 1e-5, keep_epochs: yes, max_steps: 010}")
    assert (config.download.files, config.download.revision) == ("yes", "2024-02-30")
    assert (config.train.lr, config.train.keep_epochs, config.train.max_steps) == (1e-5, True, 10)


def test_an_override_that_is_no_yaml_is_the_text_that_was_typed(tmp_path: Path) -> None:
    assert load(tmp_path, "{}", "download.files=*.json").download.files == "*.json"
    with pytest.raises(ConfigError, match="train: should be a group of settings"):
        load(tmp_path, "{}", "train={lr: 1, lr: 2}")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"name: \x00"], ids=["not UTF-8", "NUL"])
def test_a_file_that_is_no_text_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"file\.yaml: not "):
        settings.load(tmp_path / "file.yaml")


def test_the_command_line_refuses_a_value_of_another_kind(tmp_path: Path) -> None:
    from talaria.cli import stage_commands  # noqa: F401 (declares the commands)

    words = ["convert", "--input", str(tmp_path / "x"), "--output", str(tmp_path / "y"), "--set", "convert.rows=2024-02-30"]
    with pytest.raises(UserError, match=r"convert\.rows: should be a valid integer"):
        app(words, standalone_mode=False)
