"""Aliases under the gate: who becomes champion, who challenger, the way back, and what a retry does."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from talaria.cli.chat import resolve_model
from talaria.common.errors import DataError, UserError
from talaria.config.evaluation_settings import Promote
from talaria.registry.promotion.champion import champion, unchanged
from talaria.registry.promotion.champion_loss import champion_beside
from talaria.registry.promotion.promote import preview, promote, reject
from talaria.registry.promotion.rollback import rollback
from talaria.registry.register import register
from talaria.registry.versions import add_entry, find_model, prune, search_versions, set_tags, tags_of
from talaria.tracking.mlflow_client import connect
from talaria.workflow.run_all import decide

from tests.support import tiny_pipeline

PLAIN = Promote(rule="plain")


class Models:
    """A registered model whose versions are tags only: what the gate reads."""

    def __init__(self, uri: str) -> None:
        self.uri, self.name = uri, f"gate-{uuid.uuid4().hex[:8]}"
        self.client = connect(uri)
        self.client.create_registered_model(self.name)
        experiment = self.client.create_experiment(self.name)
        self.run = self.client.create_run(experiment)

    def add(self, loss: float | None, base: float | None = 5.0, heldout: str = "same", **tags: str) -> int:
        values = {"talaria.candidate": "true", "talaria.eval_loss": loss, "talaria.eval_base_loss": base}
        values |= {"talaria.heldout_digest": heldout, "talaria.train_key": f"key-{loss}", **tags}
        known = {name: str(value) for name, value in values.items() if value is not None}
        source = f"runs:/{self.run.info.run_id}/model"
        return int(self.client.create_model_version(self.name, source, self.run.info.run_id, known, description="# card").version)

    def aliases(self) -> dict[str, int]:
        return find_model(self.client, self.name)

    def tags(self, version: int) -> dict[str, str]:
        return tags_of(self.client.get_model_version(self.name, str(version)))

    def description(self, version: int) -> str:
        return self.client.get_model_version(self.name, str(version)).description

    def promote(self, version: int | None = None, **more):
        """By mean losses, which is all that these versions have; test_noise_rule.py has the other rule."""
        return promote(self.name, version, settings=PLAIN, uri=self.uri, **more)

    def rollback(self, **more):
        return rollback(self.name, uri=self.uri, **{"reason": "wrong answers", "who": "ann", **more})


@pytest.fixture
def models(sqlite_uri: str) -> Models:
    """test_registration.py has both ways to have MLflow; the gate asks the same client."""
    return Models(sqlite_uri)


def test_the_first_version_needs_to_beat_the_base_only(models):
    assert not models.promote(models.add(6.0))["promoted"]
    assert models.aliases() == {"challenger": 1}
    assert models.promote(models.add(4.0))["promoted"]
    assert models.aliases() == {"challenger": 1, "champion": 2}


def test_a_worse_one_becomes_challenger_a_better_one_champion(models):
    models.promote(models.add(3.0))
    worse = models.promote(models.add(3.5))
    assert (worse["promoted"], models.aliases()) == (False, {"champion": 1, "challenger": 2})
    better = models.promote(models.add(2.0))
    assert (better["promoted"], better["previous"]) == (True, 1)
    assert models.aliases() == {"champion": 3, "challenger": 2}


def test_the_decision_and_the_numbers_are_written_on_the_version(models):
    models.promote(models.add(3.0))
    models.promote(models.add(3.5), margin=0.25)
    tags = models.tags(2)
    assert tags["talaria.gate"] == "refused"
    assert [float(tags[f"talaria.gate.{name}"]) for name in ("loss", "base_loss", "champion_loss", "margin")] == [3.5, 5, 3, 0.25]
    assert tags["talaria.gate.champion"] == "1"
    assert tags["talaria.gate.reason"] in models.description(2)
    assert models.description(2).startswith("# card\n")


def test_a_preview_says_what_would_be_decided_and_moves_nothing(models):
    models.promote(models.add(3.0))
    better, worse = models.add(2.0), models.add(3.5)
    seen = [preview(models.name, version, settings=PLAIN, uri=models.uri) for version in (better, worse, 1)]
    assert [answer["promoted"] for answer in seen] == [True, False, False]
    assert seen[0]["losses"] == {"candidate": 2.0, "base": 5.0, "champion": 3.0}
    assert seen[2]["reason"] == "Version 1 is the champion already."
    assert models.aliases() == {"champion": 1}
    assert "talaria.gate" not in models.tags(better)


def test_without_airflow_a_version_that_needs_an_approval_waits_for_it(models):
    models.promote(models.add(3.0))
    better, worse, asks = models.add(2.0), models.add(3.5), PLAIN.model_copy(update={"approval": True})
    waiting = decide(models.name, better, asks, models.uri)
    assert (waiting["promoted"], waiting["champion"], models.aliases()) == (False, 1, {"champion": 1})
    assert f"`talaria promote {models.name} {better} --config CONFIG`" in waiting["reason"]
    assert not decide(models.name, worse, asks, models.uri).get("waits")  # there is nothing to decide
    assert models.aliases() == {"champion": 1, "challenger": worse}
    assert decide(models.name, better, PLAIN, models.uri)["promoted"]


def test_a_rejection_is_written_on_the_version_and_holds_until_a_person_promotes_it(models):
    models.promote(models.add(3.0))
    better = models.add(2.0)
    for _ in range(2):  # a retry of the task
        told = reject(models.name, better, by="ann", uri=models.uri)
    assert told["reason"] == f"Version {better} is not promoted. It was rejected by ann."
    assert models.tags(better)["talaria.rejected_by"] == "ann"
    assert models.description(better).count("Rejected by ann") == 1
    again = preview(models.name, better, settings=PLAIN, uri=models.uri)
    assert not again["promoted"], "so nobody is asked again"
    assert again["rejected"]
    assert "rejected by ann" in models.promote(better)["reason"]
    assert models.aliases()["champion"] == 1
    models.promote(better, by="bob")
    assert models.aliases()["champion"] == better
    assert "talaria.rejected_by" not in models.tags(better)


def test_who_approved_a_promotion_is_written_on_the_version(models):
    models.promote(models.add(3.0), approved_by="ann")
    assert models.tags(1)["talaria.gate.approved_by"] == "ann"


def test_without_a_version_the_newest_candidate_is_taken(models):
    models.add(3.0)
    models.add(2.0)
    models.add(1.0, **{"talaria.candidate": "false"})
    assert models.promote()["version"] == 2


def test_promoting_the_champion_again_tells_what_was_decided(models):
    models.promote(models.add(4.0))
    first = models.promote(models.add(3.0))
    again = models.promote(2)
    assert again["promoted"]
    assert again["losses"] == first["losses"]
    assert again["previous"] == 1
    assert models.description(2).count("held-out loss") == 1


def test_a_challenger_that_wins_later_is_no_challenger_any_more(models):
    models.promote(models.add(3.0))
    models.promote(models.add(3.5))
    models.promote(2, by="ann")
    assert models.aliases() == {"champion": 2}
    assert models.tags(2)["talaria.gate.by"] == "ann"
    assert "not below that of the champion" in models.tags(2)["talaria.gate.reason"]


@pytest.mark.parametrize("dies_in", ["set_registered_model_alias", "set_model_version_tag", "update_model_version"])
def test_a_promotion_killed_anywhere_ends_the_same_when_repeated(models, monkeypatch, dies_in):
    from mlflow import MlflowClient

    models.promote(models.add(4.0))
    models.add(3.0)

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, dies_in, dies)
        with pytest.raises(KeyboardInterrupt):
            models.promote(2)
    models.promote(2)
    assert models.aliases() == {"champion": 2}
    assert models.tags(2)["talaria.previous_champion"] == "1"
    assert models.tags(1)["talaria.succeeded_by"] == "2"


def test_rollback_brings_the_former_champion_back_and_says_who_and_why(models):
    for loss in (4.0, 3.0, 2.0):
        models.promote(models.add(loss))
    facts = models.rollback()
    assert (facts["from"], facts["champion"]) == (3, 2)
    assert models.aliases()["champion"] == 2
    tags = models.tags(3)
    assert (tags["talaria.rolled_back_by"], tags["talaria.rolled_back_reason"]) == ("ann", "wrong answers")
    assert "Rolled back to version 2 by ann: wrong answers" in models.description(3)
    assert models.rollback()["champion"] == 1  # and further back
    with pytest.raises(DataError, match="first champion"):
        models.rollback()


def test_a_rollback_needs_a_reason():
    with pytest.raises(UserError, match="the reason is blank; say why"):
        rollback("small", reason=" ", who="ann", uri="sqlite:///nowhere.db")


def test_a_retried_rollback_goes_back_once(models):
    for loss in (4.0, 3.0, 2.0):
        models.promote(models.add(loss))
    first = models.rollback(request="manual__2026-01-01 it's 1")
    assert models.rollback(request="manual__2026-01-01 it's 1") == first
    assert models.aliases()["champion"] == 2


def test_a_rollback_killed_before_the_alias_moved_is_completed(models, monkeypatch):
    from mlflow import MlflowClient

    for loss in (4.0, 3.0, 2.0):
        models.promote(models.add(loss))

    def dies(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", dies)
        with pytest.raises(KeyboardInterrupt):
            models.rollback(request="r")
    models.rollback(request="r")
    assert models.aliases()["champion"] == 2


def test_what_was_rolled_back_comes_back_by_a_persons_word_only(models):
    models.promote(models.add(4.0))
    models.promote(models.add(3.0))
    models.rollback()
    refused = models.promote(2)
    assert not refused["promoted"]
    assert "rolled back by ann: wrong answers" in refused["reason"]
    assert models.promote(2, by="bob")["promoted"]
    assert "talaria.rolled_back" not in models.tags(2)
    assert "Rolled back to version 1 by ann" in models.description(2)
    models.rollback(who="carl", reason="still wrong")
    assert models.tags(2)["talaria.rolled_back_by"] == "carl"


def test_nothing_to_do_for_the_champions_training_nor_for_one_that_was_rolled_back(models):
    assert unchanged("no-such-model", "key", uri=models.uri) is None
    assert unchanged(models.name, "key-3.0", uri=models.uri) is None
    models.promote(models.add(4.0))
    models.promote(models.add(3.0))
    assert "champion version 2" in (unchanged(models.name, "key-3.0", uri=models.uri) or "")
    assert unchanged(models.name, "key-4.0", uri=models.uri) is None
    models.rollback()
    assert "rolled back: wrong answers" in (unchanged(models.name, "key-3.0", uri=models.uri) or "")
    now = champion(models.name, uri=models.uri)
    assert now is not None
    assert (now["version"], now["train_key"], now["loss"]) == (1, "key-4.0", 4.0)


def test_the_champion_is_measured_on_the_candidates_conversations(settings, folders, sqlite_uri, tmp_path, outputs):
    """Another held-out set: the champion's own number says nothing about it."""
    from talaria.evaluation.stage import evaluate
    from talaria.tokenization.stage import tokenize

    first = register(settings, folders, uri=sqlite_uri)
    promote(first["model"], first["candidate"], uri=sqlite_uri)
    tiny_pipeline.write_messages(tmp_path / "other.parquet", rows=80)
    tokens = tmp_path / "tokens"
    more = tiny_pipeline.config(tokenize={"validation_fraction": 0.5}).tokenize
    tokenize(tmp_path / "other.parquet", folders["base"], tokens, more)
    train = tmp_path / "train"
    shutil.copytree(folders["train"], train, copy_function=os.link)
    shutil.rmtree(train / "model")
    shutil.copytree(train / "exports" / "step-00000020", train / "model")  # the weaker one, as the new candidate
    shutil.rmtree(train / "exports")
    (train / "manifest.json").unlink()
    evaluate(settings, model=train / "model", tokens=tokens, base=folders["base"], output=tmp_path / "evaluation")
    second = register(settings, {"train": train, "tokenize": tokens, "evaluate": tmp_path / "evaluation"}, uri=sqlite_uri)

    facts = promote(second["model"], second["candidate"], uri=sqlite_uri)

    assert not facts["promoted"]
    assert f"not better than the champion (version {first['candidate']}) beyond noise" in facts["reason"]
    measured = evaluate(settings, model=folders["train"] / "model", tokens=tokens, base=None, output=tmp_path / "again")
    assert facts["losses"]["champion"] == pytest.approx(measured["heldout_loss"], rel=1e-6)
    client = connect(sqlite_uri)
    both = [client.get_model_version(first["model"], str(one["candidate"])) for one in (first, second)]
    beside = champion_beside(client, *both, settings.evaluate, sqlite_uri)  # what a person is shown who is asked
    assert beside["metrics"]["exact_match"] == measured["exact_match"]
    samples = [json.loads(line) for line in (tmp_path / "again" / "samples.jsonl").read_text().splitlines()]
    assert beside["answers"] == {sample["row"]: sample["tuned"] for sample in samples}
    tags = tags_of(client.get_model_version(first["model"], str(first["candidate"])))
    assert any(name.startswith("talaria.items_on.") for name in tags)
    shutil.rmtree(tokens)  # the number is kept, so the files are not needed again
    assert promote(second["model"], second["candidate"], uri=sqlite_uri)["losses"] == facts["losses"]


def test_the_champion_answers_the_candidates_tasks(settings, folders, sqlite_uri, tmp_path):
    """It was registered before there was a task; results that are kept are not measured again."""
    from talaria.evaluation import exam, stage

    first = register(settings, folders, uri=sqlite_uri)
    promote(first["model"], first["candidate"], uri=sqlite_uri)
    lines = [{"prompt": f"{n} Say {colour}", "expected": f"{colour}!"} for n in (5, 6) for colour in tiny_pipeline.COLOURS]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {"prompts": 0, "tasks": [{"name": "colours", "file": str(tmp_path / "t.jsonl")}]}
    registry = {"model": settings.registry.model}
    config = tiny_pipeline.config(registry=registry, evaluate=tasks, promote={"regressions": 0})
    train = tmp_path / "train"
    shutil.copytree(folders["train"], train, copy_function=os.link)
    shutil.rmtree(train / "exports")
    shutil.rmtree(train / "model")
    shutil.copytree(folders["train"] / "exports" / "step-00000020", train / "model")
    (train / "manifest.json").unlink()
    given = {"model": train / "model", "tokens": folders["tokenize"], "base": folders["base"]}
    stage.evaluate(config, output=tmp_path / "evaluation", **given)
    (tmp_path / "t.jsonl").unlink()  # a copy is kept
    second = register(
        config, {"train": train, "tokenize": folders["tokenize"], "evaluate": tmp_path / "evaluation"}, uri=sqlite_uri
    )

    told = promote(second["model"], second["candidate"], settings=config.promote, uri=sqlite_uri)

    assert not told["promoted"]
    assert f"Answers that the champion (version {first['candidate']}) has right and it has wrong: " in told["reason"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exam.Exam, "of", lambda *_: pytest.fail("it is measured again"))
        again = preview(second["model"], second["candidate"], settings=config.promote, uri=sqlite_uri)
    assert told["reason"].endswith(again["reason"])


def test_a_champion_that_cannot_be_measured_stays(models):
    models.promote(models.add(3.0))
    facts = models.promote(models.add(1.0, heldout="other"))
    assert not facts["promoted"]
    assert "is not known" in facts["reason"]
    assert models.aliases()["champion"] == 1


def test_prune_keeps_the_newest_those_with_an_alias_and_the_way_back(models):
    for loss in (4.0, 3.0, 3.5):
        models.promote(models.add(loss))
    for loss in (2.9, 2.8, 2.7):
        models.add(loss)
    facts = prune(models.name, 2, uri=models.uri)
    assert facts["removed"] == [4]
    assert facts["kept"] == [1, 2, 3, 5, 6]
    assert models.rollback()["champion"] == 1
    with pytest.raises(DataError, match="at least one"):
        prune(models.name, 0, uri=models.uri)


def test_prune_frees_the_files(settings, folders, sqlite_uri):
    from talaria.registry.versions import local_folder

    facts = register(settings, folders, uri=sqlite_uri)
    first, last = (connect(sqlite_uri).get_model_version(facts["model"], str(v["version"])).source for v in facts["versions"])
    prune(facts["model"], 1, uri=sqlite_uri)
    assert not local_folder(first).exists()
    assert (local_folder(last) / "model.safetensors").exists()
    assert (folders["train"] / "exports" / "step-00000020" / "model.safetensors").exists()
    assert register(settings, folders, uri=sqlite_uri)["versions"][0]["version"] == 3  # and it can come again


@pytest.mark.parametrize("how", ["copied", "renamed"])
def test_prune_leaves_the_files_that_another_models_version_serves(settings, folders, sqlite_uri, monkeypatch, tmp_path, how):
    """MLflow's "Promote model" copies a version, and a registered model can get another name: the files are the same."""
    client = connect(sqlite_uri)
    facts = register(settings, folders, uri=sqlite_uri)
    served = f"prod-{facts['model']}"
    if how == "copied":
        number = client.copy_model_version(f"models:/{facts['model']}/{facts['versions'][0]['version']}", served).version
    else:
        client.rename_registered_model(facts["model"], served)
        number = facts["versions"][0]["version"]
        assert not register(settings, folders, uri=sqlite_uri)["reused"]  # under the old name again, from the same files
    client.set_registered_model_alias(served, "champion", str(number))

    prune(facts["model"], 1, uri=sqlite_uri)

    monkeypatch.chdir(tmp_path)
    folder = resolve_model(f"models:/{served}@champion", uri=sqlite_uri)
    assert (folder / "model.safetensors").read_bytes() == (
        folders["train"] / "exports" / "step-00000020" / "model.safetensors"
    ).read_bytes()
    assert list(tmp_path.iterdir()) == []  # no mlflow.db beside whatever the user does there
    for version in search_versions(client, served):
        client.delete_model_version(served, version.version)


def test_a_champion_that_is_a_copy_is_measured(settings, folders, sqlite_uri):
    """Its `source` names the version it was copied from; its files are where MLflow says."""
    from talaria.registry.promotion.champion_loss import champion_loss

    client = connect(sqlite_uri)
    facts = register(settings, folders, uri=sqlite_uri)
    copy = client.copy_model_version(f"models:/{facts['model']}/{facts['candidate']}", f"prod-{facts['model']}")
    set_tags(client, copy.name, copy.version, {"talaria.heldout_digest": "another"})
    copy = client.get_model_version(copy.name, copy.version)
    candidate = client.get_model_version(facts["model"], str(facts["candidate"]))
    loss, why = champion_loss(client, copy, candidate, sqlite_uri)
    assert why is None
    assert loss == pytest.approx(float(tags_of(candidate)["talaria.eval_loss"]), rel=1e-5)


def test_writers_at_once_lose_nothing_of_each_others(models):
    version = models.add(3.0)
    with ThreadPoolExecutor(8) as pool:
        for written in [
            *(pool.submit(set_tags, models.client, models.name, version, {f"talaria.note.{n}": n}) for n in range(8)),
            *(pool.submit(add_entry, models.client, models.name, version, "today", f"entry {n}") for n in range(8)),
        ]:
            written.result()
    assert {f"talaria.note.{n}" for n in range(8)} <= models.tags(version).keys()
    assert sorted(line for line in models.description(version).splitlines() if "entry" in line) == [
        f"- today: entry {n}" for n in range(8)
    ]


def test_unknown_names_are_one_sentence(models):
    with pytest.raises(DataError, match="no registered model"):
        promote("no-such-model", uri=models.uri)
    with pytest.raises(DataError, match="has no version 7"):
        models.promote(7)
    with pytest.raises(DataError, match="no version that Talaria registered"):
        models.promote()
    with pytest.raises(DataError, match="no champion"):
        models.rollback()


def test_two_hundred_versions_stay_quick_to_work_with(server, capsys):
    models = Models(server.uri)
    for number in range(200):
        models.add(4.0 - number / 100)
    models.promote(1)
    seconds = {}
    for name, act in {
        "list": lambda: search_versions(models.client, models.name),
        "champion": lambda: champion(models.name, uri=models.uri),
        "unchanged": lambda: unchanged(models.name, "key-none", uri=models.uri),
        "promote": lambda: models.promote(200),
        "prune 10": lambda: prune(models.name, 190, uri=models.uri),
        "rollback": models.rollback,
    }.items():
        start = time.monotonic()
        act()
        seconds[name] = round(time.monotonic() - start, 3)
    assert len(search_versions(models.client, models.name)) == 191  # version 1 was champion, and 200's way back
    with capsys.disabled():
        print(f"\n200 versions, seconds: {seconds}")
