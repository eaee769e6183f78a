"""`talaria publish` to a folder and to a hub: what others get, and what is refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from talaria.cli import app, model_commands
from talaria.common.errors import DataError, UserError
from talaria.publishing import card
from talaria.publishing.destination import destination
from talaria.publishing.publish import PUBLISHED, publish
from talaria.registry.references import find_version
from talaria.registry.register import register
from talaria.registry.versions import tags_of
from talaria.tracking.mlflow_client import connect
from typer.testing import CliRunner

from tests.publishing.conftest import REPOSITORY, talaria
from tests.publishing.hub import TOKEN, Hub, Repository, serve
from tests.support import tiny_pipeline

BASE_CARD = b"---\nlicense: other\nlicense_name: some-licence\nlicense_link: https://example.org/licence\n---\n# Base\n"
DATA_CARD = b"---\nlicense: cc-by-nc-4.0\nlanguage:\n- en\n- de\n---\n# Chats\n"


@pytest.fixture
def hub() -> Iterator[Hub]:
    """With the base model that the version was trained from, and the data at the commit that it was trained on."""
    with serve(Hub()) as hub:
        hub.models["some-lab/base"] = Repository({"README.md": BASE_CARD})
        hub.datasets["some-lab/chats"] = Repository({"README.md": DATA_CARD})
        yield hub


@pytest.fixture
def at_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The stand-in, as the hub of this process."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def front_matter(card_text: str) -> dict:
    return yaml.safe_load(card_text.split("---\n")[1])


def test_a_new_repository_is_private_and_holds_what_others_need(
    published_model: str, store: Path, sqlite_uri: str, hub: Hub, folder_of: Path, tmp_path: Path
) -> None:
    cache = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    words = ["publish", published_model, "--to", "hub:some-lab/tuned", "--store", store, "--json"]
    done = talaria(*words, **cache, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    made = hub.models["some-lab/tuned"]
    assert made.private
    assert made.commits == [f"published version {facts['version']}"], "one commit"
    assert facts["url"] == f"{hub.url}/some-lab/tuned"
    assert set(made.files) == {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "README.md", "manifest.json"),
    }
    for name in ("model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert made.files[name] == (folder_of / name).read_bytes()
    text = made.files["README.md"].decode()
    front = front_matter(text)
    assert (front["base_model"], front["base_model_relation"], front["datasets"]) == (
        *("some-lab/base", "finetune"),
        ["some-lab/chats"],
    )
    assert (front["license"], front["license_name"], front["language"]) == ("other", "some-licence", ["en", "de"])
    results = {result["type"]: result["value"] for result in front["model-index"][0]["results"][0]["metrics"]}
    assert results["loss"] == pytest.approx(0.2, abs=0.1)
    assert "- Data, some-lab/chats: cc-by-nc-4.0." in text
    assert str(store) not in "".join(made.files[name].decode() for name in made.files if not name.endswith("safetensors"))
    version = find_version(connect(sqlite_uri), published_model)
    assert tags_of(version)[PUBLISHED] == f"hub:some-lab/tuned@{facts['commit']}"


def test_the_commands_of_the_page(
    published_model: str, sqlite_uri: str, at_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """docs/publishing.md."""
    commands = re.findall(r"^\$ talaria (.*)$", (REPOSITORY / "docs" / "publishing.md").read_text(), re.MULTILINE)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.replace("models:/tiny@champion", published_model).split()
        assert CliRunner().invoke(app.app, words, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "published" / "model.safetensors").is_file()
    assert at_hub.models["my-org/tiny"].private


def test_publishing_again_replaces_the_files_and_nothing_of_others(
    published_model: str, sqlite_uri: str, at_hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = destination("hub:some-lab/tuned")

    def again(**options: bool) -> dict:
        return publish(published_model, to, uri=sqlite_uri, on_line=print, **options)

    again(public=True)
    made = at_hub.models["some-lab/tuned"]
    assert not made.private
    made.files |= {"model-00002-of-00002.safetensors": b"of an earlier, larger version", "README.md": b"old"}
    again(public=True)
    assert "model-00002-of-00002.safetensors" not in made.files
    assert made.files["README.md"] != b"old"
    assert len(made.commits) == 2
    with pytest.raises(UserError, match="is there already, and public; add --public"):
        again()
    made.private = True
    with pytest.raises(UserError, match="is there already, and private; change that on its settings page"):
        again(public=True)
    made.files = {"README.md": b"somebody's own"}
    with pytest.raises(UserError, match="holds files that `talaria publish` did not put there"):
        again()
    assert made.files == {"README.md": b"somebody's own"}
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    del at_hub.models["some-lab/tuned"]
    with pytest.raises(UserError, match=r"refuses the token \(HTTP 401\)"):
        again()
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="There is no token of the hub to write with; set HF_TOKEN"):
        again()


def test_a_folder_is_whole_and_states_no_licence_that_nobody_gave(
    published_model: str, store: Path, folder_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    words = ["publish", published_model, "--store", str(store)]
    done = CliRunner().invoke(model_commands.app, [*words, "--to", f"folder:{tmp_path / 'out'}"])
    assert done.exit_code == 0, done.output
    assert (
        "No licence is stated: its card could not be read from the hub. Set registry.license, or give --license." in done.stderr
    )
    weights = tmp_path / "out" / "model.safetensors"
    assert weights.read_bytes() == (folder_of / "model.safetensors").read_bytes()
    assert weights.stat().st_nlink == 1, "a copy: whoever changes it does not change the version"
    assert "license" not in front_matter((tmp_path / "out" / "README.md").read_text())
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    for place, given, sentence in (
        (f"folder:{tmp_path / 'mine'}", [], "something there that `talaria publish` did not make; choose another --to."),
        (f"folder:{tmp_path / 'new'}", ["--public"], "--public is about a repository on the hub"),
        ("s3://bucket", [], "--to s3://bucket: expected hub:ORG/NAME or folder:PATH."),
        ("hub:no-owner", [], "--to: a name on the hub looks like ORG/NAME"),
        (f"folder:{tmp_path / 'new'}", ["--license", "My own"], "--license: 'My own' is no licence id of the hub"),
    ):
        refused = CliRunner().invoke(model_commands.app, [*words, "--to", place, *given])
        assert isinstance(refused.exception, UserError)
        assert sentence in str(refused.exception)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_a_local_base_is_not_named_unless_its_name_on_the_hub_is_given(
    outputs, sqlite_uri: str, at_hub: Hub, tmp_path: Path
) -> None:
    secret = tmp_path / "secret-project"
    judge = {"base_url": "http://judge.secret-project:8000/v1", "model": "judge"}
    config = tiny_pipeline.config(
        registry={"model": "private-base", "license": "mit", "experiment": "publishing"},
        evaluate={"tasks": [{"name": "manners", "file": str(secret / "tasks.jsonl"), "judge": "rate", "judge_model": judge}]},
        tokenize={"template": str(secret / "chat.jinja")},
        base={"source": "local", "path": str(secret)},
        download={"source": "local", "path": str(secret / "chats.jsonl")},
    )
    facts = register(config, {name: output.path for name, output in outputs.items()}, uri=sqlite_uri)
    name = f"models:/private-base/{facts['candidate']}"

    def card_with(**options: str) -> str:
        publish(name, destination(f"folder:{tmp_path / 'out'}"), uri=sqlite_uri, **options)
        return (tmp_path / "out" / "README.md").read_text()

    text = card_with()
    assert "- `tokenize.max_tokens`: 128" in text
    assert "secret-project" not in text
    assert {"base_model", "base_model_relation", "datasets"}.isdisjoint(front_matter(text))
    assert front_matter(text)["license"] == "mit"
    named = front_matter(card_with(base_model="some-lab/base", license="apache-2.0"))
    assert (named["base_model"], named["license"]) == ("some-lab/base", "apache-2.0")


def test_a_mixture_names_the_sources_that_are_on_the_hub_and_no_other(
    outputs, sqlite_uri: str, at_hub: Hub, tmp_path: Path
) -> None:
    sources = {
        "chats": {"download": {"source": "hub", "repo": "some-lab/chats"}},
        "own": {"download": {"source": "local", "path": str(tmp_path / "secret.jsonl")}, "held_out": 0.5},
    }
    config = tiny_pipeline.config(
        registry={"model": "mixed", "experiment": "publishing"},
        sources=sources,
        download={"source": "hub"},
        tokenize={"validation_fraction": 0},
    )
    facts = register(config, {name: output.path for name, output in outputs.items()}, uri=sqlite_uri)
    publish(f"models:/mixed/{facts['candidate']}", destination(f"folder:{tmp_path / 'out'}"), uri=sqlite_uri)
    text = (tmp_path / "out" / "README.md").read_text()
    assert front_matter(text)["datasets"] == ["some-lab/chats"]
    assert front_matter(text)["language"] == ["en", "de"]
    assert "on some-lab/chats, private data with Talaria" in text
    assert "OpenHermes" not in text
    assert "secret" not in text


def test_damaged_files_are_not_published(published_model: str, sqlite_uri: str, folder_of: Path, tmp_path: Path) -> None:
    path = folder_of / "tokenizer.json"
    whole = path.read_bytes()
    path.unlink()  # a link to the store's
    path.write_bytes(whole + b" ")
    try:
        with pytest.raises(DataError, match="its files are not those that were registered as published version"):
            publish(published_model, destination(f"folder:{tmp_path / 'out'}"), uri=sqlite_uri)
    finally:
        path.write_bytes(whole)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "metadata",
    [{"model-index": [{"name": "m", "results": [{"task": {"type": "t"}}]}]}, {"license": math.nan}],
)
def test_a_card_that_the_hub_would_not_read_is_refused(metadata: dict) -> None:
    with pytest.raises(DataError, match="front matter"):
        card.validate(f"---\n{yaml.safe_dump(metadata)}---\n# M\n")
