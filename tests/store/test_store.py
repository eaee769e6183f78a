"""Stage outputs are whole or absent, reused when nothing changed, and safe from crashes and races."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import UserError
from talaria.store.store import Output, Store, output_key

DESCRIBED = {"settings": {}, "inputs": {}, "outside": None}


def write_greeting(folder: Path) -> dict[str, Any]:
    (folder / "part").mkdir()
    (folder / "part" / "greeting.txt").write_text("hello")
    return {"rows": 1}


def make(store: Store, key: str = "k" * 64, write: Any = write_greeting, **options: Any) -> Output:
    return store.run("greet", key, write, described_by=DESCRIBED, **options)


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("a finished stage ran again")


def test_an_output_is_made_once_and_reused(tmp_path: Path) -> None:
    first = make(Store(tmp_path))
    again = make(Store(tmp_path), write=never)
    assert (first.reused, again.reused) == (False, True)
    assert (again.path, again.facts) == (first.path, {"rows": 1})
    assert Output.from_json(json.loads(json.dumps(again.as_json()))) == again


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    output = make(Store(tmp_path))
    manifest = json.loads((output.path / "manifest.json").read_text())
    assert manifest["files"] == {
        "part/greeting.txt": {"bytes": 5, "sha256": "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}
    }
    assert manifest["key"] == "k" * 64
    assert manifest["versions"]["pyarrow"]


def test_modes_follow_the_umask_so_that_others_may_share_the_store(tmp_path: Path) -> None:
    former = os.umask(0o002)
    try:
        output = make(Store(tmp_path / "store"))
    finally:
        os.umask(former)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (output.path, *output.path.rglob("*"))}
    assert modes == {output.path.name: 0o775, "part": 0o775, "greeting.txt": 0o664, "manifest.json": 0o664}


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        write_greeting(folder)
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        make(Store(tmp_path), write=fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        write_greeting(folder)
        with open("/dev/full", "w") as full:
            full.write("x")
        return {}

    with pytest.raises(UserError, match=r"the disk is full while stage greet writes; free space"):
        make(Store(tmp_path), write=fill)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_resumable_stage_finds_what_the_last_attempt_left(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "checkpoint").write_text("step 3")
        raise RuntimeError("killed")

    def finish(folder: Path) -> dict[str, Any]:
        return {"from": (folder / "checkpoint").read_text()}

    with pytest.raises(RuntimeError, match="killed"):
        make(Store(tmp_path), write=fail, resumable=True)
    assert make(Store(tmp_path), write=finish, resumable=True).facts == {"from": "step 3"}


def test_force_replaces_an_output(tmp_path: Path) -> None:
    make(Store(tmp_path))
    again = make(Store(tmp_path), write=lambda folder: {"rows": 2}, force=True)
    assert (again.reused, again.facts) == (False, {"rows": 2})
    assert make(Store(tmp_path), write=never).facts == {"rows": 2}


def test_runs_that_race_for_a_key_do_not_damage_each_other(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    outputs: list[Output] = []

    def slow(folder: Path) -> dict[str, Any]:
        together.wait()
        return write_greeting(folder)

    threads = [threading.Thread(target=lambda: outputs.append(make(Store(tmp_path), write=slow))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outputs) == 8
    assert sum(not output.reused for output in outputs) == 1
    assert (outputs[0].path / "part" / "greeting.txt").read_text() == "hello"
    assert list((tmp_path / ".work").iterdir()) == []


@pytest.mark.parametrize("moment", ["writing", "published"])
def test_a_kill_leaves_the_whole_output_or_nothing(tmp_path: Path, moment: str) -> None:
    script = f"""
import os, signal
from talaria.store import store
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
def write(folder):
    (folder / "big").write_bytes(b"x" * 1000000)
    if {moment!r} == "writing": die()
    return {{"rows": 1}}
if {moment!r} == "published":
    sync = store.fsync
    store.fsync = lambda path: die() if path.name == "greet" else sync(path)
store.Store({str(tmp_path)!r}).run("greet", "k" * 64, write, described_by={{}})
"""
    died = subprocess.run([sys.executable, "-c", script], check=False)
    assert died.returncode == -signal.SIGKILL
    found = Store(tmp_path).find("greet", "k" * 64)
    if moment == "writing":
        assert found is None
        assert make(Store(tmp_path)).reused is False
    else:
        assert found is not None
        assert os.stat(found.path / "big").st_size == 1000000


def test_a_key_covers_all_that_decides_an_output() -> None:
    base: dict[str, Any] = {"stage": "s", "version": 1, "settings": {"a": 1}, "inputs": {"i": "k"}, "outside": "commit"}
    changed = [
        base | change
        for change in (
            {"stage": "t"},
            {"version": 2},
            {"settings": {"a": 2}},
            {"inputs": {"i": "l"}},
            {"outside": "other"},
        )
    ]
    keys = {output_key(**arguments) for arguments in [base, *changed]}
    assert len(keys) == 6
    assert output_key(**base) in keys
