"""Pruning frees what nothing uses, leaves what a run works in or reads, and survives being killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from talaria.common.errors import UserError
from talaria.common.files import MANIFEST
from talaria.common.locks import in_use, locked
from talaria.store.prune import IN_USE, NEEDED, entries, prune
from talaria.store.store import Output, Store
from talaria.store.verify import verify

KEY = "0123456789abcdef" * 4


def write(folder: Path) -> dict[str, Any]:
    (folder / "greeting.txt").write_text("hello")
    return {"rows": 1}


def make(store: Store, stage: str = "greet", write: Any = write, **options: Any) -> Output:
    return store.run(stage, KEY, write, described_by={"settings": {}, "inputs": {}, "outside": None}, **options)


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("a finished stage ran again")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_older_than_asked_goes(store: Store) -> None:
    old, new = make(store), make(store, "other")
    os.utime(old.path / MANIFEST, (0, 0))
    assert [entry.path for entry in prune(store, 7, dry_run=True)] == [old.path]
    assert old.path.exists()
    assert [entry.path for entry in prune(store, 7)] == [old.path]
    assert not old.path.exists()
    assert new.path.exists()
    assert list((store.root / ".work").iterdir()) == []


@pytest.mark.parametrize("days", [-1.0, float("nan"), float("inf")])
def test_a_number_of_days_that_is_none_is_refused(store: Store, days: float) -> None:
    make(store)
    with pytest.raises(UserError, match="should be 0 or more"):
        prune(store, days)


def test_what_a_stage_reads_and_where_it_writes_stays_while_it_runs(store: Store) -> None:
    """As a training of weeks has it: its input was made long ago, and nothing has touched it since."""
    source, running, go_on = make(store, "source"), threading.Event(), threading.Event()
    os.utime(source.path / MANIFEST, (0, 0))

    def slow(folder: Path) -> dict[str, Any]:
        running.set()
        assert go_on.wait(60)
        return write(folder)

    thread = threading.Thread(target=make, args=(store, "greet", slow), kwargs={"reads": [source.path]})
    thread.start()
    assert running.wait(60)
    assert prune(store, 0) == []
    go_on.set()
    thread.join()
    assert {entry.path for entry in prune(store, 0)} == {source.path, store.place("greet", KEY)}


CHAIN = {"download": [], "convert": ["download"], "base": [], "tokenize": ["convert", "base"], "elsewhere": []}
TRAIN = ["tokenize", "base"]


def long_ago(store: Store) -> dict[str, Output]:
    """Everything that a training reads, its report beside it, and an output that has nothing to do with it."""
    made = {
        stage: store.run(stage, KEY, write, described_by={"inputs": dict.fromkeys(inputs, KEY)})
        for stage, inputs in (CHAIN | {"report": ["download", "convert", "tokenize"]}).items()
    }
    for output in made.values():
        os.utime(output.path / MANIFEST, (0, 0))
    return made


def train(store: Store, made: dict[str, Output], write: Any) -> Output:
    reads = [made[name].path for name in TRAIN]
    return store.run("train", KEY, write, described_by={"inputs": dict.fromkeys(TRAIN, KEY)}, resumable=True, reads=reads)


def pruned(store: Store) -> tuple[set[str], dict[str, str]]:
    kept: dict[str, str] = {}
    gone = prune(store, 7, on_kept=lambda entry, why: kept.update({entry.stage: why}))
    return {entry.stage for entry in gone}, kept


def test_what_the_later_stages_of_a_running_training_read_stays(store: Store) -> None:
    """Evaluation reads convert's output, registration the report; the training itself holds neither."""
    made = long_ago(store)

    def run_for_weeks(folder: Path) -> dict[str, Any]:
        (folder / "status.json").write_text("{}")
        os.utime(folder / "status.json", (0, 0))
        kept = {"tokenize": IN_USE, "base": IN_USE, "download": NEEDED, "convert": NEEDED, "report": NEEDED}
        assert pruned(store) == ({"elsewhere"}, kept)
        return {}

    train(store, made, run_for_weeks)


def test_what_a_training_that_was_killed_goes_on_from_stays(store: Store) -> None:
    made = long_ago(store)

    def killed(folder: Path) -> dict[str, Any]:
        (folder / "status.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(store, made, killed)
    assert pruned(store) == ({"elsewhere"}, dict.fromkeys(made.keys() - {"elsewhere"}, NEEDED))
    os.utime(store.work("train", KEY), (0, 0))
    for path in store.work("train", KEY).iterdir():
        os.utime(path, (0, 0))
    assert pruned(store) == (made.keys() - {"elsewhere"} | {"train"}, {})


def test_what_a_finished_training_was_made_from_stays_for_the_next_stage(store: Store) -> None:
    made = long_ago(store)
    output = train(store, made, write)
    assert pruned(store) == ({"elsewhere", "report"}, dict.fromkeys(CHAIN.keys() - {"elsewhere"}, NEEDED))
    assert json.loads((output.path / MANIFEST).read_text())["files"].keys() == {"greeting.txt"}
    os.utime(output.path / MANIFEST, (0, 0))
    assert pruned(store) == (CHAIN.keys() - {"elsewhere"} | {"train"}, {})


@pytest.mark.parametrize("lock", ["beside", "within", "of another machine"])
def test_a_training_that_something_works_in_stays(store: Store, lock: str) -> None:
    """The launcher's lock is beside the folder; the one that the reaper holds for its ranks, launcher or not, is in it."""
    work = store.work("train", KEY)
    work.mkdir(parents=True)
    (work / "status.json").write_text("{}")
    path = {"beside": work.with_suffix(".lock"), "within": work / "lock", "of another machine": work / "lock.1"}[lock]
    with locked(path):
        assert prune(store, 0) == []
    assert [entry.path for entry in prune(store, 0)] == [work]


def test_ranks_keep_the_base_model_and_the_tokens(store: Store) -> None:
    """What the launcher takes hold of, the reaper goes on holding where the launcher is killed."""
    base = make(store, "base")
    with in_use(base.path / MANIFEST) as held:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=held)
    try:
        assert prune(store, 0) == []
    finally:
        child.communicate(b"\n")
    assert [entry.path for entry in prune(store, 0)] == [base.path]


def test_a_kill_while_it_prunes_leaves_no_half_of_an_output(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    output = make(store)
    removed = shutil.rmtree

    def killed(folder: Path, **options: Any) -> None:
        (folder / MANIFEST).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(store, 0)
    monkeypatch.setattr(shutil, "rmtree", removed)
    left = list(entries(store))
    assert [entry.finished for entry in left] == [False]
    assert not make(store).reused
    assert make(store, write=never).path == output.path
    assert {entry.path for entry in prune(store, 0)} == {left[0].path, output.path}


@pytest.mark.parametrize("manifest", [None, "", '{"stage": "greet", "ke', "[]", "{}"], ids=str)
def test_an_output_without_a_whole_manifest_is_shown_and_made_again(store: Store, manifest: str | None) -> None:
    """Cut off by a prune of an earlier version, or torn by a disk that failed."""
    output, other = make(store), make(store, "other")
    if manifest is None:
        (output.path / MANIFEST).unlink()
    else:
        (output.path / MANIFEST).write_text(manifest)
    assert {entry.path: entry.finished for entry in entries(store)} == {output.path: False, other.path: True}
    assert [damage.path for damage in verify(store)] == [output.path]
    assert not make(store).reused
    assert make(store, write=never).facts == {"rows": 1}
    assert list(verify(store)) == []


def test_a_damaged_file_is_found_and_made_again(store: Store) -> None:
    output = make(store)
    make(store, "other")
    (output.path / "greeting.txt").write_text("hellp")
    found = list(verify(store, repair=True))
    assert [(damage.path, damage.what) for damage in found] == [
        (output.path, "greeting.txt does not have the sha256 of the manifest")
    ]
    aside = found[0].aside
    assert aside is not None
    assert (aside / "greeting.txt").read_text() == "hellp"
    assert not make(store).reused
    assert (output.path / "greeting.txt").read_text() == "hello"


def test_a_missing_file_is_damage_too(store: Store) -> None:
    output = make(store)
    (output.path / "greeting.txt").unlink()
    assert [damage.what for damage in verify(store)] == ["greeting.txt is missing"]
    assert (output.path / MANIFEST).exists()


def test_an_input_that_was_pruned_is_one_sentence(store: Store) -> None:
    source = make(store, "source")
    prune(store, 0)
    with pytest.raises(UserError, match=f"{source.path}, which stage greet reads, is gone"):
        make(store, write=never, reads=[source.path])


def test_of_an_output_that_is_a_link_only_the_link_goes(store: Store, tmp_path: Path) -> None:
    """Somebody moved it to a larger disk, and later that disk was gone."""
    made, elsewhere = make(store), tmp_path / "elsewhere"
    made.path.rename(elsewhere)
    made.path.symlink_to(elsewhere)
    assert make(store, write=never).reused
    assert [(entry.path, entry.bytes) for entry in prune(store, 0)] == [(made.path, 0)]
    assert (elsewhere / "greeting.txt").read_text() == "hello"
    made.path.symlink_to(tmp_path / "gone")
    assert not make(store).reused
    assert not made.path.is_symlink()


def test_a_stage_whose_folder_is_on_another_disk_is_refused_before_it_runs(store: Store) -> None:
    store.root.mkdir()
    (store.root / "greet").symlink_to("/proc")
    with pytest.raises(UserError, match=r"greet: is on another disk than .*; keep the store on one, or move the whole of it\."):
        make(store, write=never)
    assert list((store.root / ".work").iterdir()) == []


def test_files_that_are_no_outputs_are_none_of_its_business(store: Store) -> None:
    (store.root / "mlflow-artifacts" / "talaria").mkdir(parents=True)
    (store.root / "mlflow-artifacts" / "talaria" / "model.safetensors").write_text("weights")
    make(store)
    assert len(prune(store, 0)) == 1
    assert (store.root / "mlflow-artifacts" / "talaria" / "model.safetensors").exists()


def test_the_command_says_what_is_damaged_and_mends_it(store: Store) -> None:
    from talaria.cli import app, model_commands  # noqa: F401
    from typer.testing import CliRunner

    output = make(store)
    (output.path / "greeting.txt").write_text("hellp")
    command = ["store", "verify", "--store", str(store.root)]
    told = CliRunner().invoke(app.app, command)
    assert (told.exit_code, told.stdout) == (1, f"{output.path}: greeting.txt does not have the sha256 of the manifest\n")
    assert CliRunner().invoke(app.app, [*command, "--repair"]).exit_code == 0
    assert CliRunner().invoke(app.app, command).exit_code == 0
    refused = CliRunner().invoke(app.app, ["store", "prune", "--days", "-1", "--store", str(store.root)])
    assert refused.exit_code == 2
    assert json.dumps(sorted(entry.finished for entry in entries(store))) == "[false]"


@pytest.mark.parametrize("command", ["ls", "prune", "verify"])
def test_a_store_that_is_not_there_is_not_taken_for_an_empty_one(command: str, tmp_path: Path) -> None:
    from talaria.cli import app, model_commands  # noqa: F401
    from typer.testing import CliRunner

    with pytest.raises(UserError, match="typo: there is no store; name it by --store or TALARIA_STORE"):
        CliRunner().invoke(app.app, ["store", command, "--store", str(tmp_path / "typo")], catch_exceptions=False)
    assert not (tmp_path / "typo").exists()
