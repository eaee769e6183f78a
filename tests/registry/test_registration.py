"""Registration: every kept model a version, no copy, the same versions again, all that it came from on it."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
from talaria.common.errors import DataError
from talaria.registry.kept_models import FINAL, KeptModel
from talaria.registry.register import metrics_of, register
from talaria.registry.versions import local_folder, search_versions, tags_of
from talaria.tracking.mlflow_client import connect
from talaria.tracking.tag_record import RECORD

from tests.support import tiny_pipeline


def source_of(uri: str, model: str, version: int) -> Path:
    folder = local_folder(connect(uri).get_model_version(model, str(version)).source)
    assert folder is not None
    return folder


def test_every_kept_model_becomes_a_version_that_loads_as_it_is(uri, settings, folders):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = register(settings, folders, uri=uri)

    assert [(v["step"], v["role"]) for v in facts["versions"]] == [(20, "kept"), (120, "final")]
    assert not facts["reused"]
    assert facts["candidate"] == facts["versions"][-1]["version"]
    source = source_of(uri, facts["model"], facts["candidate"])
    assert AutoModelForCausalLM.from_pretrained(source).config.model_type == "qwen3"
    prompt = AutoTokenizer.from_pretrained(source).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_weights_are_not_copied(uri, settings, folders):
    facts = register(settings, folders, uri=uri)
    weights = source_of(uri, facts["model"], facts["candidate"]) / "model.safetensors"
    assert os.path.samefile(weights, folders["train"] / "model" / "model.safetensors")


def test_a_pruned_store_leaves_the_version_whole(settings, folders, sqlite_uri, tmp_path):
    copy = tmp_path / "train"
    shutil.copytree(folders["train"], copy, copy_function=os.link)
    facts = register(settings, {**folders, "train": copy}, uri=sqlite_uri)
    before = (folders["train"] / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(copy)
    assert (source_of(sqlite_uri, facts["model"], facts["candidate"]) / "model.safetensors").read_bytes() == before


def test_registering_again_finds_the_versions_that_are_there(uri, settings, folders):
    first = register(settings, folders, uri=uri)
    again = register(settings, folders, uri=uri)
    assert again["reused"]
    assert {**again, "reused": False} == first
    assert len(search_versions(connect(uri), first["model"])) == 2


def test_a_registration_that_was_killed_half_way_is_completed_without_doubles(settings, folders, sqlite_uri, monkeypatch):
    from mlflow import MlflowClient

    real = MlflowClient.create_model_version

    def dies_at_the_second(self, *args, **kwargs):
        if search_versions(self, args[0]):
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", dies_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            register(settings, folders, uri=sqlite_uri)
    facts = register(settings, folders, uri=sqlite_uri)
    assert [v["version"] for v in facts["versions"]] == [1, 2]
    client = connect(sqlite_uri)
    mine = f"tags.`talaria.training` = '{facts['train_key'][:8]}'"
    experiment = client.get_run(facts["run_id"]).info.experiment_id
    models = [m for m in client.search_logged_models([experiment], filter_string=mine) if m.name == facts["model"]]
    assert len(models) == 2


def test_a_version_says_where_it_comes_from_and_how_good_it_is(uri, settings, folders, outputs):
    facts = register(settings, folders, uri=uri)
    client = connect(uri)
    version = client.get_model_version(facts["model"], str(facts["candidate"]))
    for stage in ("download", "convert", "base", "tokenize", "train", "evaluate"):
        assert tags_of(version)[f"talaria.key.{stage}"] == outputs[stage].key
    assert tags_of(version)["talaria.train_key"] == outputs["train"].key
    assert len([name for name in version.tags if name.startswith("talaria.")]) <= 8, "what people see beside a version"
    assert all(len(value) < 64 for name, value in version.tags.items() if name != RECORD)
    report = json.loads((folders["evaluate"] / "report.json").read_text())
    quality = f"Held-out loss {report['tuned']['loss']:.4f} (base {report['base']['loss']:.4f}), exact match"
    assert version.description.startswith(quality)
    assert version.description.splitlines()[0].endswith(" talaria-sample, 2023-11-14.")
    assert version.tags["talaria.training"] == outputs["train"].key[:8]
    assert client.get_run(facts["run_id"]).info.run_name == f"small-{outputs['train'].key[:8]}"
    assert float(tags_of(version)["talaria.eval_loss"]) == report["tuned"]["loss"]
    assert float(tags_of(version)["talaria.eval_base_loss"]) == report["base"]["loss"]
    assert tags_of(version)["talaria.heldout_digest"] == report["heldout"]["digest"]

    model = client.get_logged_model(tags_of(version)["talaria.model_id"])
    by_name = {metric.key: metric for metric in model.metrics}
    assert by_name["eval_loss"].value == report["tuned"]["loss"]
    assert by_name["eval_loss"].dataset_digest == report["heldout"]["digest"][:32]
    kept = client.get_model_version(facts["model"], str(facts["versions"][0]["version"]))
    assert float(tags_of(kept)["talaria.eval_loss"]) == report["exports"][0]["loss"]


def test_the_run_has_the_configuration_the_data_and_the_files(uri, settings, folders):
    facts = register(settings, folders, uri=uri)
    client = connect(uri)
    run = client.get_run(facts["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in tiny_pipeline.config().flat().items()} | {
        name: run.data.params[name] for name in ("registry.model",)
    }
    contexts = {tag.value: inputs.dataset for inputs in run.inputs.dataset_inputs for tag in inputs.tags}
    assert contexts.keys() == {"training", "heldout"}
    assert all(dataset.digest for dataset in contexts.values())
    assert len(client.get_metric_history(facts["run_id"], "loss")) == 120
    names = {file.path for folder in ("evaluation", "plots", "data") for file in client.list_artifacts(facts["run_id"], folder)}
    assert names >= {"evaluation/report.json", "evaluation/answers.json", "plots/loss.png", "data/samples.html"}


def test_answers_before_and_after_are_a_table(sqlite_uri, settings, folders):
    import mlflow

    facts = register(settings, folders, uri=sqlite_uri)
    path = connect(sqlite_uri).download_artifacts(facts["run_id"], "evaluation/answers.json")
    table = json.loads(Path(path).read_text())
    assert {"prompt", "reference", "base", "tuned", "tuned_match"} <= set(table["columns"])
    assert len(table["data"]) == 8
    assert mlflow.__version__


def test_the_card_is_the_description_and_the_readme(uri, settings, folders):
    facts = register(settings, folders, uri=uri)
    version = connect(uri).get_model_version(facts["model"], str(facts["candidate"]))
    readme = (source_of(uri, facts["model"], facts["candidate"]) / "README.md").read_text()
    assert version.description in readme
    assert readme.startswith("---\nlibrary_name: transformers\n")
    report = json.loads((folders["evaluate"] / "report.json").read_text())
    assert f"{report['tuned']['loss']:.4f}" in version.description
    assert f"{report['base']['loss']:.4f}" in version.description
    assert "dropped: 3 unknown role" in version.description
    assert (folders["train"] / "model" / "README.md").read_text() == "# first card\n"  # the store's own file is as it was


def test_a_damaged_file_is_refused_by_name(settings, folders, sqlite_uri, tmp_path):
    copy = tmp_path / "train"
    shutil.copytree(folders["train"], copy)
    weights = copy / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(DataError, match=r"model\.safetensors.*sha256"):
        register(settings, {**folders, "train": copy}, uri=sqlite_uri)


def test_an_unfinished_training_is_refused(settings, folders, sqlite_uri, tmp_path):
    copy = tmp_path / "train"
    shutil.copytree(folders["train"], copy, copy_function=os.link)
    status = copy / "status.json"
    text = status.read_text().replace('"done"', '"preempted"')
    status.unlink()
    status.write_text(text)
    with pytest.raises(DataError, match="has not finished"):
        register(settings, {**folders, "train": copy}, uri=sqlite_uri)


def test_folders_outside_a_store_register_too(settings, folders, sqlite_uri, tmp_path):
    copies = {}
    for name in ("train", "tokenize", "evaluate"):
        copies[name] = tmp_path / name
        shutil.copytree(folders[name], copies[name], copy_function=os.link)
        (copies[name] / "manifest.json").unlink()
    facts = register(settings, copies, uri=sqlite_uri)
    assert register(settings, copies, uri=sqlite_uri)["reused"]
    assert len(facts["versions"]) == 2


def test_without_a_held_out_split_versions_come_without_numbers(settings, folders, sqlite_uri, tmp_path):
    (tmp_path / "report.json").write_text(
        json.dumps({"heldout": None, "tuned": None, "base": None, "exports": [], "note": "none"})
    )
    facts = register(settings, {**folders, "evaluate": tmp_path}, uri=sqlite_uri)
    version = connect(sqlite_uri).get_model_version(facts["model"], str(facts["candidate"]))
    assert "talaria.eval_loss" not in tags_of(version)
    assert facts["versions"][-1]["loss"] is None


def test_a_server_that_keeps_files_itself_gets_them(server, settings, folders):
    upload = settings.model_copy(
        update={"registry": settings.registry.model_copy(update={"artifacts": "server", "experiment": settings.registered_name})}
    )
    facts = register(upload, folders, uri=server.uri)
    version = connect(server.uri).get_model_version(facts["model"], str(facts["candidate"]))
    assert version.source.startswith("mlflow-artifacts:")
    from talaria.cli.chat import resolve_model

    folder = resolve_model(f"models:/{facts['model']}/{facts['candidate']}", uri=server.uri)
    original = folders["train"] / "model" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == original.read_bytes()
    assert not list(folders["train"].glob(".upload-*"))


def test_a_version_keeps_the_airflow_run_that_trained_it(settings, folders, sqlite_uri):
    """Training is reused by a later run, which registers it: the later run did not train."""
    name = settings.registered_name
    own = settings.model_copy(update={"registry": settings.registry.model_copy(update={"experiment": name})})
    later = own.model_copy(update={"registry": own.registry.model_copy(update={"model": f"{name}-later"})})
    register(own, folders, uri=sqlite_uri, context={"dag_id": "sft", "run_id": "first"})
    facts = register(later, folders, uri=sqlite_uri, context={"dag_id": "sft", "run_id": "second"})
    version = connect(sqlite_uri).get_model_version(facts["model"], str(facts["candidate"]))
    assert tags_of(version)["talaria.run_id"] == "first"


def test_nothing_secret_reaches_mlflow(settings, folders, sqlite_uri, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_plantedplantedplanted")
    monkeypatch.setenv("SOME_API_KEY", "planted-key-1234")
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "manual__planted-key-1234")
    leaky = settings.model_copy(
        update={
            "download": settings.download.model_copy(
                update={"source": "hub", "repo": "https://user:planted-pass@host/hf_plantedplantedplanted"}
            ),
            "registry": settings.registry.model_copy(update={"model": settings.registered_name}),
        }
    )
    facts = register(leaky, folders, uri=sqlite_uri, context={"note": "planted-key-1234"})
    client = connect(sqlite_uri)
    version = client.get_model_version(facts["model"], str(facts["candidate"]))
    run = client.get_run(facts["run_id"])
    readme = (source_of(sqlite_uri, facts["model"], facts["candidate"]) / "README.md").read_text()
    inputs = [str(dict(inputs.dataset)) for inputs in run.inputs.dataset_inputs]
    about = client.get_registered_model(facts["model"]).description
    told = json.dumps([version.tags, version.description, run.data.tags, run.data.params, readme, inputs, about])
    assert "planted" not in told


def test_a_training_that_is_evaluated_again_gets_the_new_results(settings, folders, sqlite_uri, tmp_path):
    """A task that was added, say: the version is the same, and the gate finds what it asks for."""
    from talaria.evaluation.items import Items
    from talaria.registry.version_items import ITEMS, read_items

    first = register(settings, folders, uri=sqlite_uri)
    again = tmp_path / "evaluation"
    shutil.copytree(folders["evaluate"], again)
    report = json.loads((again / "report.json").read_text())
    (again / "report.json").write_text(json.dumps(report | {"seconds": 0.5}))
    made = Items.read(again / "items" / "tuned.parquet")
    made.metrics["task/new"] = made.metrics["exact_match"]
    made.write(again / "items" / "tuned.parquet")

    second = register(settings, {**folders, "evaluate": again}, uri=sqlite_uri)

    assert second["reused"]
    assert second["versions"] == first["versions"]
    client = connect(sqlite_uri)
    version = client.get_model_version(first["model"], str(first["candidate"]))
    found = read_items(client, version, ITEMS)
    assert found is not None
    assert found.metrics.keys() == {"heldout_loss", "exact_match", "task/new"}


def test_numbers_that_are_not_finite_stay_out_of_mlflows_models() -> None:
    """MLflow would keep NaN as 0 there: the lowest loss of all (findings/mlflow_model_nan.sh)."""
    kept = KeptModel(Path("model"), 7, FINAL, math.nan, {}, {"web": 1.5, "code": math.inf})
    report = {"base": {"loss": 2.0}, "tuned": {"exact_match": 0.0}}
    assert metrics_of(kept, report) == {"eval_base_loss": 2.0, "eval_loss/web": 1.5, "eval_exact_match": 0.0}
