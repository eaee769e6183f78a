"""Download from a local path, the generator and the hub: what arrives, what is checked, what is told."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from talaria.common.errors import DataError, UserError
from talaria.config.data_settings import Download
from talaria.config.load import load
from talaria.config.schema import Config
from talaria.data.convert import convert_sources
from talaria.data.download import download, fingerprint
from talaria.data.synthetic.generator import generate

from tests.data.hub import COMMIT, REPO, Hub, serve

ROWS = json.dumps(list(generate(400, 0)), indent=4).encode()
TOKEN = "hf_not_to_be_seen"


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def local(path: Path, **settings: Any) -> Download:
    return Download(source="local", path=path, **settings)


def fetched(settings: Download, output: Path) -> dict[str, Any]:
    return download(Config(name="x", download=settings), output)


def test_a_file_is_copied_and_its_digest_recorded(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_bytes(ROWS)
    facts = fetched(local(tmp_path / "rows.json", sha256=digest(ROWS).upper()), tmp_path / "out")
    assert (tmp_path / "out" / "data" / "rows.json").read_bytes() == ROWS
    assert facts["files"] == {"rows.json": {"bytes": len(ROWS), "sha256": digest(ROWS)}}


def test_a_folders_data_files_are_copied_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.json", "deep/b.jsonl", "README.md", "dataset_info.json", ".hidden.json"):
        (folder / name).write_bytes(b'{"conversations": []}')
    facts = fetched(local(folder), tmp_path / "all")
    assert list(facts["files"]) == ["a.json", "deep/b.jsonl"]
    assert list(fetched(local(folder, files="*.jsonl"), tmp_path / "some")["files"]) == ["deep/b.jsonl"]
    with pytest.raises(DataError, match=r"no data file that matches '\*\.parquet'.*found \.hidden\.json, README\.md"):
        fetched(local(folder, files="*.parquet"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_generator_writes_the_sample(tmp_path: Path) -> None:
    facts = fetched(Download(source="sample", rows=400), tmp_path / "out")
    assert facts["files"]["sample.json"]["sha256"] == digest(ROWS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sha256": "0" * 64}, r"rows\.json: its sha256 is .*download\.sha256 says 0000"),
        ({"files": "*", "sha256": "0" * 64, "path": "."}, r"download\.sha256 is for one file, found 2: .*download\.files"),
        ({"path": "gone.json"}, r"gone\.json: no such file or folder"),
        ({"path": "notes.txt"}, r"notes\.txt: not a data file that can be read; expected parquet, JSON"),
    ],
)
def test_what_is_not_as_expected_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("rows.json", "more.json"):
        (folder / name).write_bytes(ROWS)
    (folder / "notes.txt").write_text("Dear diary")
    path = folder / settings.pop("path", "rows.json")
    with pytest.raises(DataError, match=message):
        fetched(local(path, **settings), tmp_path / "out")
    assert sorted(found.name for found in tmp_path.iterdir()) == ["folder"]


def test_the_key_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    def key(path: Path) -> Any:
        config = Config(name="x", download=local(path))
        return fingerprint(config), config.download.key_fields()

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.json").write_bytes(ROWS)
    assert key(tmp_path / "a") == key(tmp_path / "b") == key(tmp_path / "a" / "rows.json")
    (tmp_path / "b" / "rows.json").write_bytes(ROWS + b"\n")
    assert key(tmp_path / "a") != key(tmp_path / "b")


def test_an_output_that_is_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="did not make"):
        fetched(Download(source="sample", rows=10), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"


def fetch(hub: Hub, folder: Path, settings: dict[str, Any] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`talaria download` of the hub's repository."""
    return fetch_with(hub, folder, {"download": {"source": "hub", "repo": REPO} | (settings or {})}, **environment)


def fetch_with(hub: Hub, folder: Path, tree: dict[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """`talaria download` in a process of its own: the hub library reads its environment when it is imported."""
    config = folder / "run.yaml"
    config.write_text(json.dumps({"name": "run"} | tree))
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-m", "talaria.cli", "download", str(config), "--output", str(folder / "out"), "--json"]
    done = subprocess.run(command, env=known | own | environment, capture_output=True, text=True, check=False)
    assert TOKEN not in done.stdout + done.stderr
    return done


def told(done: subprocess.CompletedProcess[str], folder: Path) -> str:
    """The one sentence of a run that failed and left nothing at its output."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("talaria: ")
    assert not (folder / "out").exists()
    return lines[-1]


def test_the_hubs_data_files_arrive_at_the_commit_of_the_revision(tmp_path: Path) -> None:
    files = {"rows.json": ROWS, "deep/more.jsonl": b'{"conversations": []}\n', "README.md": b"# Chats", ".gitattributes": b""}
    with serve(Hub(files, large=("rows.json",))) as hub:
        done = fetch(hub, tmp_path)
        assert done.returncode == 0, done.stderr
        assert {token for path, token in hub.tokens.items() if REPO in path} == {f"Bearer {TOKEN}"}
        assert hub.ranges == [None, None]
    facts = json.loads(done.stdout)
    assert (facts["repo"], facts["revision"], facts["commit"]) == (REPO, "main", COMMIT)
    assert {name: found["sha256"] for name, found in facts["files"].items()} == {
        name: digest(files[name]) for name in ("deep/more.jsonl", "rows.json")
    }
    assert (tmp_path / "out" / "data" / "rows.json").read_bytes() == ROWS
    assert not list(tmp_path.glob(".*"))


def test_sources_of_a_mixture_come_from_the_hub_each_at_its_commit(tmp_path: Path) -> None:
    def lines(*questions: str) -> bytes:
        return b"".join(json.dumps({"prompt": question, "completion": "Yes."}).encode() + b"\n" for question in questions)

    files = {"train.jsonl": lines("A?", "B?", "C?"), "exam/test.jsonl": lines("B?", "D?"), "README.md": b"# Chats"}
    (tmp_path / "own.jsonl").write_bytes(lines("E?"))
    on_hub = {"source": "hub", "repo": REPO}
    sources = {
        "chats": {"download": on_hub | {"files": "train*"}},
        "exam": {"download": on_hub | {"files": "exam/*", "revision": COMMIT}, "held_out": 1},
        "own": {"download": {"source": "local", "path": str(tmp_path / "own.jsonl")}, "repeat": 2},
    }
    with serve(Hub(files)) as hub:
        done = fetch_with(hub, tmp_path, {"sources": sources})
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["sources"]
    assert {name: facts[name].get("commit") for name in sources} == {"chats": COMMIT, "exam": COMMIT, "own": None}
    config = load(tmp_path / "run.yaml", [])
    convert_sources(tmp_path / "out" / "data", tmp_path / "messages.parquet", config.sources)
    asked = [row[0]["content"] for row in pq.read_table(tmp_path / "messages.parquet").column("messages").to_pylist()]
    assert sorted(asked[:2]) == ["B?", "D?"]
    assert sorted(asked[2:]) == ["A?", "C?", "E?", "E?"], "what is held out is not trained"


def test_a_transfer_that_broke_off_goes_on_in_the_next_run(tmp_path: Path) -> None:
    """The library tries five more times by itself, each from where it was; then the run ends, and the next goes on."""
    chunk = 10 << 20  # what the library writes at a time
    data = ROWS + b" " * (2 * chunk)
    with serve(Hub({"rows.json": data}, large=("rows.json",), cuts=[chunk + 5, *[0] * 6])) as hub:
        message = told(fetch(hub, tmp_path), tmp_path)
        assert f"rows.json: the connection broke after {chunk:,} of {len(data):,} bytes; run again to go on from there" in message
        hub.cuts.clear()
        hub.ranges.clear()
        done = fetch(hub, tmp_path)
        assert done.returncode == 0, done.stderr
        assert hub.ranges == [f"bytes={chunk}-"]
    assert (tmp_path / "out" / "data" / "rows.json").read_bytes() == data
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("large", [("rows.json",), ()])
def test_bytes_that_are_not_those_listed_are_refused_and_not_kept(tmp_path: Path, large: tuple[str, ...]) -> None:
    with serve(Hub({"rows.json": ROWS}, large=large, damaged=True)) as hub:
        message = told(fetch(hub, tmp_path), tmp_path)
        assert "the hub lists" in message
        assert "the copy is removed: run again" in message
        hub.damaged = False
        hub.ranges.clear()
        assert fetch(hub, tmp_path).returncode == 0
        assert hub.ranges == [None], "from the beginning"


def test_the_configured_digest_is_checked_too(tmp_path: Path) -> None:
    with serve(Hub({"rows.json": ROWS}, large=("rows.json",))) as hub:
        assert "download.sha256 says 1111" in told(fetch(hub, tmp_path, {"sha256": "1" * 64}), tmp_path)


@pytest.mark.parametrize(
    ("error", "settings", "message"),
    [
        ((403, "GatedRepo"), {}, f"{REPO}: gated; accept its terms at .*/datasets/{REPO} and set HF_TOKEN"),
        ((404, "RepoNotFound"), {}, f"{REPO}: no such dataset at .*check the name, or set HF_TOKEN"),
        (None, {"repo": "owner/nothing"}, "owner/nothing: no such dataset"),
        (None, {"revision": "v9"}, f"{REPO}: has no revision 'v9'; see .*/datasets/{REPO}/tree/main"),
        (None, {"files": "*.parquet"}, r"no data file that matches '\*\.parquet' .*it has rows\.json"),
    ],
)
def test_what_the_hub_refuses_is_told_with_what_to_do(
    tmp_path: Path, error: tuple[int, str] | None, settings: dict[str, Any], message: str
) -> None:
    with serve(Hub({"rows.json": ROWS}, error=error)) as hub:
        assert re.search(message, told(fetch(hub, tmp_path, settings), tmp_path))


@pytest.mark.parametrize("name", ["../../outside.json", "/outside.json"])
def test_a_listing_cannot_place_a_file_outside(tmp_path: Path, name: str) -> None:
    with serve(Hub({name: ROWS})) as hub:
        assert "lists a file outside the repository" in told(fetch(hub, tmp_path), tmp_path)


def test_offline_says_what_to_do_and_uses_what_the_cache_holds(tmp_path: Path) -> None:
    with serve(Hub({"rows.json": ROWS, "README.md": b"# Chats"}, large=("rows.json",))) as hub:
        message = told(fetch(hub, tmp_path, HF_HUB_OFFLINE="1"), tmp_path)
        assert "HF_HUB_OFFLINE is set" in message
        assert "set source to local" in message
        script = (
            f"from huggingface_hub import snapshot_download as s; s({REPO!r}, repo_type='dataset', allow_patterns=['*.json'])"
        )
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        subprocess.run([sys.executable, "-c", script], env=os.environ | own, check=True, capture_output=True)
        hub.ranges.clear()
        done = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
        assert done.returncode == 0, done.stderr
        assert hub.ranges == []
    assert json.loads(done.stdout)["commit"] == COMMIT
    assert (tmp_path / "out" / "data" / "rows.json").read_bytes() == ROWS
