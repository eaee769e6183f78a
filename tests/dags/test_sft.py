"""The DAG `sft` in this process: the whole way at a tiny size, run again, and refused in every way that a user can cause."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from talaria.common.errors import ConfigError, UserError
from talaria.config import load as settings
from talaria.config.data_settings import Convert
from talaria_airflow.dag import tasks as dag_tasks
from talaria_airflow.operators.links import AnswersLink

from tests.support.airflow_env import REPOSITORY

TINY = REPOSITORY / "configs" / "tiny.yaml"
SMALL = {
    "name": "small",
    "download.rows": 300,
    "download.tool_rows": 20,
    "base.vocab_size": 512,
    "base.shape.hidden_size": 32,
    "base.shape.num_hidden_layers": 1,
    "train.num_processes": 1,
    "train.max_steps": 4,
    "train.keep_epochs": False,
    "evaluate.prompts": 4,
    "evaluate.max_new_tokens": 4,
}
STAGES = ("data.download", "data.convert", "data.base", "data.tokenize", "data.report", "model.train", "model.evaluate")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sft")


@pytest.fixture(autouse=True)
def installation(shared: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store and an MLflow for all tests here, so that later ones reuse what the first has made."""
    monkeypatch.setenv("TALARIA_STORE", str(shared / "store"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}/mlflow.db")
    return f"sqlite:///{shared}/mlflow.db"


@pytest.fixture
def server_side(dags: dict[str, Any]) -> Any:
    """The DAG as the api-server reads it from the database, in a process that has loaded the plugin."""
    from airflow.serialization.serialized_objects import DagSerialization
    from talaria_airflow.plugin import TalariaPlugin

    TalariaPlugin.on_load()
    return DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dags["sft"]))


def run(dags: dict[str, Any], **conf: Any) -> Any:
    return dags["sft"].test(run_conf={"config": "tiny", **conf})


def states(run: Any) -> dict[str, str]:
    return {ti.task_id: str(ti.state) for ti in run.get_task_instances()}


def returned(run: Any, task: str) -> Any:
    value = pushed(run, task, "return_value")
    return json.loads(value) if isinstance(value, str) else value


def pushed(run: Any, task: str, key: str) -> Any:
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session

    with create_session() as session:
        return session.scalars(XComModel.get_many(run_id=run.run_id, task_ids=task, key=key)).one().value


def refusal(run: Any, capsys: pytest.CaptureFixture[str]) -> str:
    """What the log says of a run in which nothing but `configure` was tried, once."""
    assert run.state == "failed"
    assert {name: state for name, state in states(run).items() if state != "upstream_failed"} == {"configure": "failed"}
    assert run.get_task_instance("configure").try_number == 1
    return capsys.readouterr().out


@pytest.mark.timeout(600)
def test_the_whole_way_twice(dags: dict[str, Any], installation: str) -> None:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from mlflow import MlflowClient
    from sqlalchemy import select

    first = run(dags, set=SMALL)
    assert first.state == "success"
    skipped = {name for name, state in states(first).items() if state == "skipped"}
    assert skipped == {
        *("data.find_columns", "data.convert_part", "data.tokenize_part"),
        *("registry.approve", "registry.swapped"),
    }
    promoted = returned(first, "registry.promote")
    assert promoted["promoted"]
    client = MlflowClient(installation)
    version = client.get_model_version_by_alias("small", "champion")
    assert version.version == promoted["version"]
    assert client.get_run(version.run_id).data.tags["mlflow.user"] == first.triggering_user_name

    evaluated = returned(first, "model.evaluate")["key"]
    for task in ("model.evaluate", "registry.compare"):
        assert f"/talaria/answers/{evaluated}" in pushed(first, task, AnswersLink().xcom_key), "a button of the task"

    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == first.run_id)).all()
        told = {event.asset.name: event.extra for event in events}
        by_data = next(event.partition_key for event in events if event.asset.name == "talaria-model-by-data")
    assert told["talaria-tokens"]["key"] == returned(first, "data.tokenize")["key"]
    assert told["talaria-messages"]["path"] == returned(first, "data.convert")["path"]
    assert told["talaria-model"]["candidate"] == promoted["version"]
    assert by_data == told["talaria-model"]["data"] == returned(first, "registry.register")["data"]

    # The same again, tokenised in parts and on other ranks: nothing that decides the result has changed.
    versions = len(client.search_model_versions("name='small'"))
    second = run(dags, set=SMALL | {"tokenize.shards": 3, "train.prefetch": 1})
    assert second.state == "success"
    assert all(returned(second, task)["reused"] for task in (*STAGES, "registry.register"))
    assert len(client.search_model_versions("name='small'")) == versions
    assert returned(second, "registry.promote")["champion"] == promoted["version"]


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({"set": {"train.lr": -1}}, "train.lr: should be greater than 0, got -1."),
        ({"set": {"train.learning_rate": 1e-4}}, "unknown setting train.learning_rate; did you mean"),
        ({"set": {"train.seed": 10**20}}, "train.seed: should be less than or equal to 9007199254740991, got 1"),
        ({"set": {"train": {"lr": 1}}}, "train is a group of settings; name one of them"),
        ({"set": {"train.lr.peak": 1}}, "train.lr: should be a valid number"),
        ({"set": {"schedule.cron": "@daily"}}, "schedule.cron is read when the DAG is parsed"),
        ({"set": []}, "expected settings like"),
        ({"train.epochs": 0}, "param train.epochs: train.epochs: should be greater than or equal to 1, got 0."),
        ({"train.epochs": "0"}, "train.epochs: should be greater than or equal to 1, got 0."),
        ({"train.epochs": 10**20}, "train.epochs: should be less than or equal to 100000, got 1"),
        ({"train.epochs": "three"}, "train.epochs: should be a valid integer, unable to parse"),
        ({"train.epochs": "2.5"}, "train.epochs: should be a valid integer, got a number with a fractional part"),
        ({"train.epochs": True}, "train.epochs: should not be true or false, got true."),
        ({"train.lr": "1e-5x"}, "train.lr: should be a valid number"),
        ({"train.precision": "fp64"}, "'fp64' is not one of ['mixed', 'fp32', 'bf16', None]"),
        ({"config": "no-such"}, "unknown configuration 'no-such'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_when_the_run_is_triggered(server_side: Any, conf: dict[str, Any], sentence: str) -> None:
    """As the form, REST and `airflow dags trigger` ask: all three merge `conf` into the stored DAG's parameters."""
    from airflow.exceptions import ParamValidationError

    with pytest.raises(ParamValidationError) as refused:
        server_side.params.deep_merge(conf).validate()
    assert sentence in str(refused.value)


def test_a_configuration_that_was_added_a_moment_ago_can_be_triggered(
    server_side: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TALARIA_CONFIGS", str(tmp_path))
    (tmp_path / "fresh.yaml").write_text("{}")
    assert server_side.params.deep_merge({"config": "fresh"}).validate()["config"] == "fresh"


def test_the_form_has_a_typed_field_for_every_setting_of_a_run(server_side: Any) -> None:
    fields = {name: param.schema for name, param in server_side.params.items()}
    assert list(fields)[:4] == ["config", "download.path", "download.repo", "base.repo"]
    settings_of_runs = [
        name for name, _, _ in settings.documentation() if not name.startswith(("schedule.", "alerts.", "sweep."))
    ]
    assert set(fields) == {"config", "set", "force", *settings_of_runs}
    epochs = fields["train.epochs"]
    assert (epochs["title"], epochs["type"]) == ("train.epochs", ["string", "integer", "null"]), "text: as it was typed"
    assert (epochs["minimum"], epochs["maximum"]) == (1, 100_000), "for who reads the schema"
    assert fields["train.weight_decay"]["section"] == "train"


def test_fields_and_set_together_are_the_runs_settings() -> None:
    from talaria_airflow.parameters.form import overrides

    given = {"set": {"train.lr": 1.0}, "train.epochs": 2, "train.seed": None, "config": "tiny", "force": True, "name": "1e3"}
    assert overrides(given) == {"train.lr": 1.0, "train.epochs": 2, "name": "1e3"}
    assert overrides({"set": {}, "train.epochs": "2", "train.lr": "1e-5"}) == {"train.epochs": 2, "train.lr": 1e-5}
    with pytest.raises(ConfigError, match=r"train\.lr is given twice"):
        overrides(given | {"train.lr": 2.0})


def test_settings_that_do_not_go_together_are_refused_as_on_the_command_line(
    dags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as command_line:
        settings.load(TINY, {"base.source": "local"})
    assert str(command_line.value) in refusal(run(dags, set={"base.source": "local"}), capsys)


def test_a_misspelt_parameter_is_refused(dags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown parameter sets; a run takes config, force, set" in refusal(run(dags, sets={}), capsys)


def test_a_run_whose_pool_does_not_exist_is_refused_with_everything_else_that_stops_it(
    dags: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Airflow's scheduler calls the listener when a run starts; tasks without a pool's slot never do."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from talaria_airflow.listeners import run_notes

    of_this = run(dags, misspelt=1)
    with create_session() as session:
        started = session.merge(of_this)
        started.note = "Ann: the last try."
        run_notes.on_dag_run_running(started, "started")
        mine, told = started.note.splitlines()
        assert (mine, told[:51]) == ("Ann: the last try.", "There is no pool with slots called gpu; create it (")
        session.add(Pool(pool="gpu", slots=1, include_deferred=False))
        session.flush()
        run_notes.on_dag_run_running(started, "started again")
        assert started.note == mine
        session.rollback()
    with pytest.raises(UserError, match=r"^2 things would stop this run\. There is no pool .* train\.patience needs held-out"):
        configured(dags, told, {"tokenize.validation_fraction": 0, "train.patience": 1})


def configured(dags: dict[str, Any], note: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """What the first task of a run with this note returns."""
    run = SimpleNamespace(conf={}, note=note, run_type="manual")
    context = {"dag_run": run, "params": {"config": "tiny", "set": overrides}, "dag": dags["sft"], "triggering_asset_events": {}}
    return dag_tasks.configure(context, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["no-such", "../pyproject", "/etc/passwd", "tiny.yaml"])
def test_only_names_of_the_configuration_folder_are_taken(name: str) -> None:
    from talaria.config.folder import config_file

    with pytest.raises(ConfigError, match="unknown configuration"):
        config_file(name)


def test_code_of_ones_own_is_refused_before_anything_runs(dags: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    log = refusal(run(dags, set={"convert.function": "os:remove"}), capsys)
    assert "set TALARIA_ALLOW_CUSTOM_CODE=1 where it runs to allow it." in log


def test_a_row_that_cannot_be_converted_fails_with_the_command_lines_sentence(
    dags: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from talaria.common.errors import DataError
    from talaria.data.convert import convert

    rows = [{"conversations": [{"from": role, "value": "Hello."}]} for role in ("human", "narrator")]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    local = {"download.source": "local", "download.path": str(tmp_path / "rows.json"), "download.rows": 6000}
    failed = run(dags, set=SMALL | local)
    assert failed.state == "failed"
    convert_task = failed.get_task_instance("data.convert")
    assert (convert_task.state, convert_task.try_number) == ("failed", 1)
    with pytest.raises(DataError) as command_line:
        convert(Path(returned(failed, "data.download")["path"]), tmp_path / "out.parquet", Convert())
    assert str(command_line.value) in capsys.readouterr().out
    assert not (tmp_path / "out.parquet").exists()
