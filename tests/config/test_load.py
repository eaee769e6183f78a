"""What a person who edits a configuration, or types an override, gets."""

from pathlib import Path

import pytest
from talaria.common.errors import ConfigError
from talaria.config import load as settings

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path: Path) -> None:
    assert settings.load(path).name == path.stem


def test_the_real_configuration_has_the_reference_arguments() -> None:
    train = settings.load(CONFIGS / "qwen3-4b-base.yaml").train
    assert (train.epochs, train.global_batch, train.max_tokens_per_device) == (3, 128, 9216)
    assert (train.lr, train.min_lr, train.warmup_fraction) == (1e-5, 1e-6, 0.1)
    assert (train.weight_decay, train.beta1, train.beta2, train.clip) == (0.1, 0.9, 0.95, 1.0)
    assert (train.seed, train.save_every, train.reduction, train.precision) == (42, 1000, "token", "mixed")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epoch=1", "tiny.yaml: unknown setting train.epoch; did you mean train.epochs?"),
        ("train.learning_rate=1", "unknown setting train.learning_rate; did you mean train.lr?"),
        ("learning_rate=1", "unknown setting learning_rate; did you mean train.lr?"),
        ("train.flash_attention=1", "unknown setting train.flash_attention; see docs/configuration.md."),
        ("Train.epochs=1", "unknown setting Train; did you mean train?"),
        ("train.lr=-1", "tiny.yaml: train.lr: should be greater than 0, got -1."),
        ("train.lora.rank=four", "train.lora.rank: should be a valid integer"),
        ("train=3", "tiny.yaml: train: should be"),
        ("train.lr.x=3", "train.lr.x: lr holds a value, not settings."),
        ("train.lr=1e-4", "train.min_lr (0.0003) is above train.lr (0.0001), so that the learning rate would rise to it"),
        ("train.decay_fraction=0.2", "train.decay_fraction is read by train.schedule wsd only: set train.schedule."),
        ("train.lora.alpha=16", "train.lora.alpha is given without train.lora.rank, so that all parameters would be trained"),
        ("train.lora={rank: 8, targets: .*(q_proj}", "train.lora.targets: '.*(q_proj' is no regular expression"),
        ("train.lora={rank: 8, targets: []}", "train.lora.targets is empty: name the modules that get an adapter"),
        ("train.freeze=['*']", "train.trainable and train.freeze leave no parameter to train."),
        ("convert.on_bad_row=skip", "convert.on_bad_row: should be 'error' or 'drop', got 'skip'."),
        ("download.source=local", "download.path is needed when download.source is local."),
        ("name=../up", "tiny.yaml: name: should"),
        ("nonsense", "override 'nonsense': expected KEY=VALUE"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_setting(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings.load(CONFIGS / "tiny.yaml", [override])
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("download: {path: chats.jsonl}", "download.path is given, and download.source hub does not read it"),
        ("download: {source: local, path: chats.jsonl, rows: 100}", "to take the first rows of the data, set convert.rows"),
        ("sources: {a: {download: {rows: 100}}}", "sources.a.download: download.rows is the size of the generated sample"),
        (
            "sources: {a: {download: {source: sample}}}\npromote: {metrics: [{name: heldout_loss/a}]}",
            "promote.metrics names heldout_loss/a, and the sources that hold something out are none.",
        ),
        ("base: {path: smollm2}", "base.path is given, and base.source hub does not read it"),
        ("base: {tokenizer: qwen3}", "base.tokenizer is for random weights, and a model of base.source hub has its own"),
    ],
)
def test_what_the_sources_do_not_have_or_read_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        settings.load(tmp_path / "mine.yaml")
    assert sentence in str(refused.value)


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    tasks = "evaluate.tasks=[{name: a, file: ~/t.jsonl}]"
    config = settings.load(CONFIGS / "tiny.yaml", ["base.source=local", "base.path=~/model", "download.path=~/x", tasks])
    paths = (config.base.path, config.download.path, config.evaluate.tasks[0].file)
    assert [str(path) for path in paths] == ["/home/me/model", "/home/me/x", "/home/me/t.jsonl"]
    assert str(settings.load(CONFIGS / "tiny.yaml", ["base.path=~nobody-here/x"]).base.path) == "~nobody-here/x"


def test_a_configuration_is_taken_as_it_was_written_down() -> None:
    config = settings.load(CONFIGS / "tiny.yaml")
    assert settings.parse(config.model_dump(mode="json"), "xcom") == config


def test_overrides_from_a_form_and_from_the_command_line_mean_the_same() -> None:
    typed = settings.load(CONFIGS / "tiny.yaml", ["train.lr=1e-3", "train.max_steps=7", "convert.function=my.module:step"])
    form = settings.load(CONFIGS / "tiny.yaml", {"train.lr": 1e-3, "train.max_steps": 7, "convert.function": "my.module:step"})
    assert typed == form
    assert typed.train.lr == 1e-3


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train: [1, 2", "not valid YAML at line"),
        ("train.epochs: 3", "train.epochs is written as `train: {epochs: ...}` in a file."),
        ("train.lora.rank: 3", "train.lora.rank is written as `train: {lora: {rank: ...}}` in a file."),
        ("download: {source: local, path: ''}", "download.path: should be a path, got ''."),
        ("- a\n- b\n", "expected settings like 'name: my-run', found list."),
        ("", "expected settings like 'name: my-run', found NoneType."),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"broken\.yaml: ") as refused:
        settings.load(tmp_path / "broken.yaml")
    assert sentence in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot read the configuration: No such file"):
        settings.load(tmp_path / "gone.yaml")


def test_settings_that_only_change_speed_take_no_part_in_the_key() -> None:
    slow = settings.load(CONFIGS / "tiny.yaml")
    fast = settings.load(CONFIGS / "tiny.yaml", ["train.num_processes=8", "train.prefetch=4", "tokenize.workers=2"])
    assert slow.train.key_fields() == fast.train.key_fields()
    assert slow.tokenize.key_fields() == fast.tokenize.key_fields()
    other = settings.load(CONFIGS / "tiny.yaml", ["train.lr=0.1"])
    assert slow.train.key_fields() != other.train.key_fields()


def test_every_setting_is_documented() -> None:
    page = (CONFIGS.parent / "docs" / "configuration.md").read_text()
    for name, default, meaning in settings.documentation():
        shown = "–" if default is None else default
        assert meaning, f"{name} has no description"
        escaped = meaning.replace("|", "\\|")
        assert f"| `{name}` | `{shown}` | {escaped} |" in page, "run `talaria config --markdown`"
