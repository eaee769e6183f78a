"""What a model came from, out of the manifests of the store."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from talaria.stages.table import STAGES, key_of
from talaria.store.manifest import manifests, store_of
from talaria.store.store import Store
from talaria.tokenization import dataset as dataset_module
from talaria.tracking import lineage

from tests.support import tiny_pipeline


def test_manifests_are_found_from_the_last_folder_alone(folders, outputs):
    known = manifests({"evaluate": folders["evaluate"]})
    assert {name: manifest["key"] for name, manifest in known.items()} == {name: output.key for name, output in outputs.items()}


def test_folders_outside_a_store_add_nothing(tmp_path, folders):
    (tmp_path / "manifest.json").write_text(json.dumps({"stage": "evaluate"}))
    assert manifests({"evaluate": tmp_path, "train": tmp_path / "nowhere"}) == {}
    assert store_of(tmp_path) is None
    assert store_of(folders["train"]) == folders["train"].parent.parent


def test_a_training_under_way_knows_the_key_it_will_have(tmp_path):
    config = tiny_pipeline.config()
    outputs = tiny_pipeline.prepare(Store(tmp_path), config)
    known = manifests({name: outputs[name].path for name in ("tokenize", "base")})
    expected, _ = key_of(STAGES["train"], config, {name: output.key for name, output in outputs.items()})
    assert lineage.train_key(config, known) == expected
    assert lineage.train_key(config, {}) is None


def test_a_hub_data_set_is_named_with_the_commit_it_resolved_to(folders):
    config = tiny_pipeline.config(
        download={"source": "hub", "repo": "teknium/OpenHermes-2.5"}, base={"source": "hub", "repo": "Qwen/X"}
    )
    known = manifests(folders)
    tags = lineage.run_tags(config, known)
    assert (tags["talaria.data.name"], tags["talaria.data.revision"]) == ("teknium/OpenHermes-2.5", "c0ffee")
    assert tags["talaria.base"] == "Qwen/X"
    training, heldout = lineage.dataset_inputs(config, known, folders["tokenize"])
    assert training.dataset.source_type == "hugging_face"
    assert json.loads(training.dataset.source) | {"path": "teknium/OpenHermes-2.5", "revision": "c0ffee"} == json.loads(
        training.dataset.source
    )
    assert training.dataset.digest == tags["talaria.data.digest"][:32]
    assert heldout.tags[0].value == "heldout"


def test_the_held_out_digest_tells_sets_apart_and_depends_on_nothing_else(tmp_path, folders):
    from talaria.tokenization.stage import tokenize

    config = tiny_pipeline.config()
    tiny_pipeline.write_messages(tmp_path / "same.parquet")
    tiny_pipeline.write_messages(tmp_path / "other.parquet", rows=60)
    digests = []
    for name in ("same", "other"):
        tokenize(tmp_path / f"{name}.parquet", folders["base"], tmp_path / name, config.tokenize)
        digests.append(dataset_module.heldout_digest(tmp_path / name))
    assert digests[0] == dataset_module.heldout_digest(folders["tokenize"]) != digests[1]
    assert dataset_module.heldout_digest(folders["base"]) is None


def test_airflows_run_is_taken_from_its_variables_and_from_the_caller(monkeypatch):
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "sft")
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "manual__1")
    tags = lineage.run_tags(tiny_pipeline.config(), {}, {"run_id": "scheduled__2"})
    assert (tags["talaria.dag_id"], tags["talaria.run_id"]) == ("sft", "scheduled__2")


def test_the_commit_of_the_code_is_git_s(monkeypatch):
    root = Path(lineage.__file__).resolve().parents[3]
    head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode == 0:
        assert (lineage.git_commit() or "").removesuffix("-dirty") == head.stdout.strip()
    monkeypatch.setattr(lineage, "__file__", "/nowhere/pipeline/talaria/tracking/lineage.py")
    monkeypatch.setenv("TALARIA_GIT_COMMIT", "abc")
    assert lineage.git_commit() == "abc"


def test_mlflow_is_told_who_ran_what(monkeypatch):
    for name in ("AIRFLOW_CTX_DAG_ID", "AIRFLOW_CTX_DAG_RUN_ID", "AIRFLOW_CTX_DAG_OWNER", "TALARIA_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "ann")
    assert lineage.source_tags().items() >= {"mlflow.user": "ann", "mlflow.source.name": "talaria"}.items()
    monkeypatch.setenv("AIRFLOW_CTX_DAG_ID", "sft")
    monkeypatch.setenv("AIRFLOW_CTX_DAG_OWNER", "ml-team")
    expected = {"mlflow.user": "ml-team", "mlflow.source.name": "Airflow: sft", "mlflow.source.type": "JOB"}
    assert lineage.source_tags().items() >= expected.items()
    monkeypatch.setenv("TALARIA_USER", "ben")
    assert lineage.source_tags()["mlflow.user"] == "ben"


def test_an_experiment_opens_as_model_training(sqlite_uri, tmp_path):
    from talaria.tracking.mlflow_client import connect, experiment_id

    client = connect(sqlite_uri)
    made = experiment_id(client, f"kind-{tmp_path.name}-{os.getpid()}", tmp_path)
    assert client.get_experiment(made).tags["mlflow.experimentKind"] == "custom_model_development"
