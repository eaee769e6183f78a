"""Finished outputs on object storage: another machine reuses them, and nothing that is not whole and right is ever used."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import UserError
from talaria.common.files import file_digest
from talaria.store.prune import prune
from talaria.store.store import Output, Store

from tests.support.object_storage import SECRET, Bucket, ObjectStorage, use
from tests.support.server_process import free_port

KEY = "k" * 64
PLACE = f"greet/{KEY[:32]}"
DESCRIBED: dict[str, Any] = {"settings": {}, "inputs": {}, "outside": None}


def write_greeting(folder: Path) -> dict[str, Any]:
    (folder / "part").mkdir()
    (folder / "part" / "greeting.txt").write_text("hello")
    (folder / "same.txt").write_text("hello")
    (folder / "name.txt").write_text("world")
    (folder / "empty").write_text("")
    return {"rows": 1}


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("a finished stage ran again")


def make(store: Store, write: Any = write_greeting, **options: Any) -> Output:
    return store.run("greet", KEY, write, described_by=DESCRIBED, **options)


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_machine_reuses_what_one_made(tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    made = make(Store(tmp_path / "one"))
    found = make(Store(tmp_path / "two"), never)
    assert (found.reused, found.facts, found.seconds) == (True, made.facts, made.seconds)
    assert found.path == tmp_path / "two" / PLACE
    assert digests(found.path) == digests(made.path)
    assert list((tmp_path / "two" / ".work").iterdir()) == []
    assert warnings(caplog) == []
    # A file that is there twice is sent once: three contents and the manifest.
    assert len(bucket.names()) == 4


def test_a_damaged_copy_is_refused_made_again_and_replaced(
    tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    made = make(Store(tmp_path / "one"))
    name = f"{PLACE}/{file_digest(made.path / 'name.txt')}"
    bucket.put(name, b"w0rld")
    again = make(Store(tmp_path / "two"))
    assert again.reused is False
    assert (again.path / "name.txt").read_text() == "world"
    [warning] = warnings(caplog)
    assert warning == (
        f"{bucket.address}/{PLACE}: name.txt does not have the sha256 of the manifest; stage greet makes its output here."
    )
    assert bucket.get(name) == b"world"
    assert make(Store(tmp_path / "three"), never).reused


def test_a_copy_that_lacks_a_file_is_refused(tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    made = make(Store(tmp_path / "one"))
    bucket.delete(f"{PLACE}/{file_digest(made.path / 'name.txt')}")
    assert make(Store(tmp_path / "two")).reused is False
    assert "lacks name.txt" in warnings(caplog)[0]


def test_an_upload_that_breaks_off_leaves_no_manifest(
    tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as alone:
        alone.delenv("TALARIA_REMOTE")
        made = make(Store(tmp_path / "one"))
    (made.path / "name.txt").unlink()
    assert make(Store(tmp_path / "one"), never).reused
    assert f"the copy of {made.path} waits for its next use." in warnings(caplog)[0]
    assert f"{PLACE}/manifest.json" not in bucket.names()
    (made.path / "name.txt").write_text("world")
    assert make(Store(tmp_path / "one"), never).reused
    assert make(Store(tmp_path / "two"), never).reused


def test_half_an_upload_is_not_used(tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    make(Store(tmp_path / "one"))
    bucket.delete(f"{PLACE}/manifest.json")
    assert make(Store(tmp_path / "two")).reused is False
    assert warnings(caplog) == []
    assert f"{PLACE}/manifest.json" in bucket.names()


@pytest.mark.parametrize(
    "name", ["../../../escaped", "/escaped", "part/../../escaped", "..", ".", "./manifest.json", "manifest.json", "a\\..\\b"]
)
def test_a_name_that_leads_out_of_the_store_is_refused(
    tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    make(Store(tmp_path / "one"))
    manifest = json.loads(bucket.get(f"{PLACE}/manifest.json"))
    manifest["files"][name] = manifest["files"]["name.txt"]
    bucket.put(f"{PLACE}/manifest.json", json.dumps(manifest).encode())
    assert make(Store(tmp_path / "two")).reused is False
    assert "is not allowed" in warnings(caplog)[0]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"files": {"a": {}}}', b'{"files": {"a": {"sha256": "../manifest.json"}}}'])
def test_a_manifest_that_is_none_is_refused(
    tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    bucket.put(f"{PLACE}/manifest.json", content)
    assert make(Store(tmp_path / "one")).reused is False
    assert "manifest.json is not usable" in warnings(caplog)[0]
    assert make(Store(tmp_path / "two"), never).reused


def test_the_output_of_another_key_is_refused(tmp_path: Path, bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    make(Store(tmp_path / "one"))
    for name in bucket.names():
        bucket.put(name.replace(KEY[:32], "x" * 32), bucket.get(name))
    assert Store(tmp_path / "two").find("greet", "x" * 64) is None
    assert "is another output's" in warnings(caplog)[0]


def test_with_the_storage_away_a_stage_succeeds_and_its_next_use_uploads(
    tmp_path: Path,
    bucket: Bucket,
    storage: ObjectStorage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as away:
        use(f"http://127.0.0.1:{free_port()}", away)
        made = make(Store(tmp_path / "one"))
    use(storage.endpoint, monkeypatch)
    assert made.reused is False
    assert [warning.partition("; ")[2] for warning in warnings(caplog)] == [
        "stage greet makes its output here.",
        f"the copy of {made.path} waits for its next use.",
    ]
    assert bucket.names() == []
    assert make(Store(tmp_path / "one"), never).reused
    assert make(Store(tmp_path / "two"), never).reused


def test_force_replaces_the_copy(tmp_path: Path, bucket: Bucket) -> None:
    def write_other(folder: Path) -> dict[str, Any]:
        (folder / "other.txt").write_text("other")
        return {"rows": 2}

    make(Store(tmp_path / "one"))
    make(Store(tmp_path / "one"), write_other, force=True)
    assert make(Store(tmp_path / "two"), never).facts == {"rows": 2}
    assert len(bucket.names()) == 2, "what the former copy alone had is gone"


def test_runs_that_fetch_at_once_do_not_damage_each_other(tmp_path: Path, bucket: Bucket) -> None:
    make(Store(tmp_path / "one"))
    together = threading.Barrier(4)
    found: list[Output] = []

    def fetch() -> None:
        store = Store(tmp_path / "two")
        together.wait()
        found.append(make(store, never))

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [output.facts for output in found] == [{"rows": 1}] * 4
    assert digests(tmp_path / "two" / PLACE) == digests(tmp_path / "one" / PLACE)
    assert list((tmp_path / "two" / ".work").iterdir()) == []


def test_machines_that_upload_different_files_of_one_key_at_once_leave_one_of_them(tmp_path: Path, bucket: Bucket) -> None:
    """A training's output has times in it: no two are equal."""
    together = threading.Barrier(2)

    def write_own(folder: Path) -> dict[str, Any]:
        (folder / "own.txt").write_text(folder.parts[-3])
        together.wait()
        return {"by": folder.parts[-3]}

    threads = [threading.Thread(target=make, args=(Store(tmp_path / name), write_own)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = make(Store(tmp_path / "three"), never)
    assert (found.path / "own.txt").read_text() == found.facts["by"]


def test_pruning_leaves_the_copy_unless_asked(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "one")
    make(store)
    prune(store, 0.0)
    assert make(store, never).reused
    prune(store, 0.0, remote=True)
    assert bucket.names() == []
    assert make(store).reused is False
    monkeypatch.delenv("TALARIA_REMOTE")
    with pytest.raises(UserError, match="TALARIA_REMOTE is not set"):
        prune(Store(tmp_path / "one"), 0.0, remote=True)


def test_any_file_system_of_fsspec_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALARIA_REMOTE", (tmp_path / "disk").as_uri())
    made = make(Store(tmp_path / "one"))
    assert digests(make(Store(tmp_path / "two"), never).path) == digests(made.path)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("bucket/prefix", "'bucket/prefix' is not an address; write for example s3://bucket/prefix"),
        ("s3://key:hush-hush@bucket", "leave credentials out of the address"),
        ("gopher://bucket", "gopher:// cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, sentence: str
) -> None:
    monkeypatch.setenv("TALARIA_REMOTE", address)
    with pytest.raises(UserError, match=f"TALARIA_REMOTE: {sentence}") as caught:
        make(Store(tmp_path), never)
    assert "hush" not in str(caught.value)


def test_credentials_show_nowhere(tmp_path: Path, bucket: Bucket, storage: ObjectStorage) -> None:
    """The command line as a user starts it: with the storage there, away, and refusing."""
    config = tmp_path / "config.yaml"
    config.write_text("name: small\ndownload: {source: sample, rows: 20}\n")
    told = ""
    for endpoint, address in (
        (f"http://127.0.0.1:{free_port()}", bucket.address),
        (storage.endpoint, "s3://no-such-bucket/talaria"),
        (storage.endpoint, bucket.address),
    ):
        command = [sys.executable, "-m", "talaria.cli", "stage", "download", str(config), "--store", str(tmp_path / "store")]
        env = os.environ | {"AWS_ENDPOINT_URL": endpoint, "TALARIA_REMOTE": address}
        ran = subprocess.run(command, capture_output=True, text=True, env=env, check=True)
        told += ran.stdout + ran.stderr
    assert "no-such-bucket" in told
    assert f"{bucket.address} does not work" in told
    assert any(name.endswith("manifest.json") for name in bucket.names())
    assert SECRET not in told
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] + [bucket.get(name) for name in bucket.names()]
    assert not any(SECRET.encode() in content for content in kept)
